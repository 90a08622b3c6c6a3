"""Where expensive evaluations run: in this process, in local processes, or on a Ray cluster.

An executor takes `submit(fn, *args)` and returns a `concurrent.futures.Future`. A worker that dies takes at most the
task it held with it: that task is tried once more, and if its worker dies again the future raises `WorkerLostError`.
What `fn` itself raises is not tried again; it is the future's exception.

`concurrent.futures.ProcessPoolExecutor` alone would lose every future when one of its workers is killed, so each
worker is a pool of its own, rebuilt when it breaks, and is handed one task at a time.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Protocol, Self

from hwsearch.errors import DependencyError, InputError

__all__ = [
    "Executor",
    "InlineExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "WorkerLostError",
    "visible_devices",
]


class WorkerLostError(RuntimeError):
    """The worker died with this task, and so did the one that tried it again."""


class Executor(Protocol):
    """What the search needs to run evaluations somewhere. Use it as a context manager."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Runs fn(*args) somewhere; both must pickle where that is another process."""
        ...

    def close(self) -> None:
        """Gives up what still runs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Closing:
    """The context manager that all executors are."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up what still runs."""


class InlineExecutor(_Closing):
    """Runs one task after another in a thread of this process."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        return self._pool.submit(fn, *args)

    def close(self) -> None:
        """Gives up what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Task:
    future: Future[Any]
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    last_try: bool = False


class _Worker:
    """A spawned process; `device` is the only one it sees."""

    def __init__(self, device: str | None) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_initialise, initargs=(self._device,)
        )
        self._pid: Future[int] | None = None

    def submit(self, task: _Task) -> Future[Any]:
        if self._pid is None:
            self._pid = self._pool.submit(os.getpid)
        return self._pool.submit(task.fn, *task.args)

    def kill(self) -> None:
        if self._pid is not None and self._pid.done() and self._pid.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid.result(), signal.SIGKILL)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _initialise(device: str | None) -> None:
    """In the worker: one device, no part in Ctrl-C, and an end when the parent ends, however that happened."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=follow, args=(parent.sentinel,), daemon=True).start()


class ProcessExecutor(_Closing):
    """`workers` local processes, or one for each of `devices` (values of CUDA_VISIBLE_DEVICES)."""

    def __init__(self, workers: int = 1, *, devices: Sequence[str] = ()) -> None:
        if workers < 1:
            raise InputError(f"a search needs at least 1 worker, got {workers}")
        each: Sequence[str | None] = devices or [None] * workers
        self._idle = deque(_Worker(device) for device in each)
        self._all = tuple(self._idle)
        self._waiting: deque[_Task] = deque()
        self._lock = threading.RLock()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append(_Task(future, fn, args))
            self._hand_out()
        return future

    def _hand_out(self) -> None:
        while self._idle and self._waiting and not self._closed:
            worker, task = self._idle.popleft(), self._waiting.popleft()
            try:
                running = worker.submit(task)
            except BrokenProcessPool:  # it died while it was idle, so no task is to blame
                worker.kill()
                worker.start()
                running = worker.submit(task)
            running.add_done_callback(partial(self._done, worker, task))

    def _done(self, worker: _Worker, task: _Task, running: Future[Any]) -> None:
        with self._lock:
            if self._closed or running.cancelled():
                return
            error = running.exception()
            again = False
            if isinstance(error, BrokenProcessPool):
                worker.kill()
                worker.start()
                again = not task.last_try
                error = WorkerLostError(
                    "the worker process died twice over this task (killed, out of memory, or a script that starts "
                    "workers outside `if __name__ == '__main__':`)"
                )
            if again:
                self._waiting.appendleft(_Task(task.future, task.fn, task.args, last_try=True))
            self._idle.append(worker)
            self._hand_out()
        if not again:
            if error is None:
                task.future.set_result(running.result())
            else:
                task.future.set_exception(error)

    def close(self) -> None:
        """Kills the workers; futures of tasks that had not ended are cancelled."""
        with self._lock:
            self._closed = True
            for task in self._waiting:
                task.future.cancel()
            self._waiting.clear()
        for worker in self._all:
            worker.kill()


def visible_devices(names: Sequence[str]) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES must say so that a process sees one of the devices cuda, cuda:0, ... only, for each.

    Numbers count among the devices that this process may use. Raises InputError for names that are none.
    """
    here = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    found = []
    for name in names:
        kind, _, index = name.partition(":")
        if kind != "cuda" or not (index.isdecimal() or name == "cuda"):
            raise InputError(f"unknown device {name!r}: write cuda:0, cuda:1, ...")
        number = int(index or 0)
        if here and number >= len(here):
            raise InputError(f"device {name}: CUDA_VISIBLE_DEVICES names only {len(here)} here")
        found.append(here[number] if here else str(number))
    if len(set(found)) < len(found):
        raise InputError(f"{', '.join(names)}: a device has one worker, name each once")
    return tuple(found)


class RayExecutor(_Closing):
    """A Ray cluster: the one at `address`, or a local one of `workers` processes.

    gpus: of each task. What tasks import must be importable on the workers.
    """

    def __init__(self, workers: int = 1, *, address: str | None = None, gpus: float = 0) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise DependencyError(
                "ray", extra="ray", purpose="running evaluations on a Ray cluster"
            ) from None
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            where = {"num_cpus": workers} if address is None else {"address": address}
            ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        # Ray itself tries a task again whose worker died, as often as it is told.
        self._call = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=1)(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        running: Future[Any] = self._call.remote(fn, *args).future()
        running.add_done_callback(partial(self._done, future))
        return future

    def _done(self, future: Future[Any], running: Future[Any]) -> None:
        errors = self._ray.exceptions
        if running.cancelled() or future.cancelled():
            return
        error = running.exception()
        if error is None:
            future.set_result(running.result())
        elif isinstance(error, errors.RayTaskError):
            future.set_exception(error.cause)
        elif isinstance(error, errors.WorkerCrashedError | errors.OutOfMemoryError | errors.NodeDiedError):
            future.set_exception(WorkerLostError(f"the Ray worker died twice over this task: {error}"))
        else:
            future.set_exception(error)

    def close(self) -> None:
        """Leaves the cluster, and stops it where it was started here."""
        if self._own:
            self._ray.shutdown()


def _call(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)
