"""A bench in a process of its own: a kernel that hangs or kills its process costs one row.

Parent and worker exchange one line of JSON for each request. The parent waits for an answer for a time limit, then
kills the worker; a worker that is gone, however it went, is replaced by a fresh one for the next subject. The row it
was at gets the status "timeout" or "crashed" and the reason. A worker ends when its parent does.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from hwsearch.errors import DataError, HwsearchError, InputError
from hwsearch.profilers.bench import BenchSetup, LocalBench
from hwsearch.profilers.rows import (
    Row,
    Subject,
    pending_row,
    row_content,
    row_from_content,
    subject_content,
    subject_from_content,
)
from hwsearch.profilers.timing import TimingRule
from hwsearch.records import DeviceSpec, Environment, Status

__all__ = ["PROGRAM", "Worker", "main"]

PROGRAM = "from hwsearch.profilers.worker import main; main()"
_START_S = 300.0  # importing torch and starting CUDA on a cold, busy machine
_BROKEN = 75  # exit status of a worker whose device became unusable after it had answered


class _GoneError(Exception):
    """The worker ended, or did not answer in time; `status` and `reason` are those of the row it was at."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Worker:
    """A bench behind a time limit of `timeout_s` seconds for each visit. `program` is what the process runs."""

    def __init__(self, setup: BenchSetup, *, timeout_s: float, program: str = PROGRAM) -> None:
        self._setup = setup
        self._timeout_s = timeout_s
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._hello: dict[str, Any] = {}
        self._ended = 0
        self._cpu_s = self._cpu_s_before = 0.0  # of this process, and of those before it

    @property
    def environment(self) -> Environment:
        return Environment(**self._said()["environment"])

    @property
    def dtype(self) -> str:
        return str(self._said()["dtype"])

    @property
    def threads(self) -> int:
        return int(self._said()["threads"])

    @property
    def child_seconds(self) -> float:
        return self._cpu_s_before + self._cpu_s

    def release(self) -> None:
        """Nothing: the worker does it between two requests."""

    def probe(self) -> DeviceSpec:
        try:
            return DeviceSpec(**self._ask({"probe": True}, timeout_s=_START_S))
        except _GoneError as error:
            raise DataError(
                f"measuring the ceilings of {self._setup.device} failed: {error.reason}"
            ) from error

    def pending(self, subject: Subject) -> Row:
        return pending_row(
            subject,
            environment=self.environment,
            dtype=self.dtype,
            backend=self._setup.backend,
            execution=self._setup.execution,
        )

    def measure(self, subject: Subject, *, visit: int = 0) -> Row:
        request = {**subject_content(subject), "visit": visit}
        pending = self.pending(subject)
        try:
            return row_from_content(self._ask(request, timeout_s=self._timeout_s))
        except _GoneError as error:
            return replace(pending, status=error.status, reason=error.reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _said(self) -> dict[str, Any]:
        """What the worker said of itself when it started."""
        if not self._hello:
            self._start()
        return self._hello

    def _start(self) -> None:
        self._cpu_s_before, self._cpu_s = self._cpu_s_before + self._cpu_s, 0.0
        paths = [path or str(Path.cwd()) for path in sys.path]
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._program, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        try:
            self._hello = self._exchange({"setup": asdict(self._setup)}, timeout_s=_START_S)
        except _GoneError as error:
            raise DataError(f"the measuring process did not start: {error.reason}") from error

    def _ask(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            return self._exchange(request, timeout_s=timeout_s)
        except _GoneError:
            # A device that broke after the last answer is no fault of this request.
            if self._process is not None or self._ended != _BROKEN:
                raise
            self._start()
            return self._exchange(request, timeout_s=timeout_s)

    def _exchange(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._gone()
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        self._cpu_s = answer.pop("cpu_s")
        if "error" in answer:
            self._stop()
            raise InputError(answer["error"])
        return answer

    def _line(self, timeout_s: float) -> bytes:
        """The next line of the worker's answer."""
        assert self._process is not None
        assert self._process.stdout is not None
        answers, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([answers], [], [], left)[0]:
                self._stop()
                raise _GoneError(
                    "timeout",
                    f"no result within {timeout_s:g} s: the kernel hangs, or takes longer than --timeout; "
                    "its process was ended",
                )
            read = os.read(answers, 1 << 16)
            if not read:
                self._gone()
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _gone(self) -> NoReturn:
        """Raise for a worker that ended by itself."""
        assert self._process is not None
        self._ended = self._process.wait()
        self._stop()
        how = f"exit status {self._ended}"
        if self._ended < 0:
            how = f"signal {signal.Signals(-self._ended).name}"
        memory = (
            ", as the system ends processes when memory runs out" if self._ended == -signal.SIGKILL else ""
        )
        raise _GoneError("crashed", f"the measuring process died ({how}{memory})")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def main() -> None:
    """The worker's side: answer requests on standard input until it ends."""
    _die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Libraries may print: only answers go where the parent reads.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    bench: LocalBench | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if bench is None:
                bench = LocalBench(_setup(request["setup"]))
                answer = _introduction(bench)
            elif "probe" in request:
                answer = asdict(bench.probe())
            else:
                row = bench.measure(subject_from_content(request), visit=request["visit"])
                answer = row_content(row)
        except HwsearchError as error:
            answer = {"error": str(error)}
        try:
            answers.write(json.dumps({**answer, "cpu_s": time.process_time()}).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:
            return
        if "error" not in answer:
            _release(bench)


def _setup(content: dict[str, Any]) -> BenchSetup:
    return BenchSetup(**{**content, "rule": TimingRule(**content["rule"])})


def _introduction(bench: LocalBench) -> dict[str, Any]:
    return {"environment": asdict(bench.environment), "dtype": bench.dtype, "threads": bench.threads}


def _release(bench: LocalBench | None) -> None:
    if bench is None:
        return
    try:
        bench.release()
    except DataError:
        # No clean-up: freeing memory of a broken device can hang.
        os._exit(_BROKEN)


def _die_with_parent(parent: int) -> None:
    """On Linux the kernel ends this process when its parent dies, even while it hangs; else the pipe's end does."""
    if not sys.platform.startswith("linux"):
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG
    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before this took effect
        os._exit(1)
