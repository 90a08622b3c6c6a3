"""JetBlock's kernels on a GPU beside the unfused design and fla; correctness before speed, every case recorded.

    python benchmarks/gpu/kernels.py -o benchmarks/results/gpu_kernels.json
    python benchmarks/gpu/kernels.py --section tiles       # one section only

d_K 96, d_V 256, 12 heads, bf16. Sections, each in a process of its own, so that a kernel that hangs or breaks the
device takes no other with it; the file is written after every case, and a case that fails is a row with its error:
  step         JetBlock's decode step at batch 1 to 1024, against convolution, gated delta rule and norm apart
  delta_step   the plain step of the gated delta rule, ours against fla's
  tiles        tile and warps of both step kernels: what to set TILE and WARPS to
  graphs       CUDA-graph capture of every mixer's decode
  convolution  prefill of the dynamic convolution
  prefill      the JetBlock module against the gated DeltaNet module of the same size
  window       prefill of sliding-window attention: SDPA block by block against compiled FlexAttention
Times are medians of CUDA events around graph replays, with L2 flushed before each; `again` is a second measurement of
the same graph, so differences below theirs are noise. Bandwidths are shares of a 2 GiB device copy measured by the
same section; `copy_ms` copies as many bytes as the step's state has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from kernel_cases import SECTIONS
from kernel_timing import copy_rate_of

from hwsearch.profilers.environment import environment, torch_device

# Seconds until a section is stopped; together under ten minutes. fla tunes its prefill kernels at their first call.
SECONDS = {
    "step": 80,
    "delta_step": 50,
    "tiles": 80,
    "graphs": 110,
    "convolution": 30,
    "prefill": 150,
    "window": 80,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_kernels.json"))
    parser.add_argument("--section", choices=SECTIONS)
    options = parser.parse_args()
    if options.section:
        _run_section(options.section, options.device, options.output)
        return
    torch_device(options.device)  # refuses here what would fail in every section
    options.output.parent.mkdir(parents=True, exist_ok=True)
    _write(options.output, {"rows": {}})
    for section in SECTIONS:
        command = [sys.executable, __file__, "--section", section, "--device", options.device]
        try:
            code = subprocess.run(
                [*command, "-o", str(options.output)], timeout=SECONDS[section], check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
        if code:
            result = json.loads(options.output.read_text(encoding="utf-8"))
            result["rows"][f"section {section}"] = {"status": "failed", "reason": f"exit status {code}"}
            _write(options.output, result)
    rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"]
    for name, row in rows.items():
        print(name, json.dumps(row))
    print(json.dumps({"ok": sum(row["status"] == "ok" for row in rows.values()), "of": len(rows)}))


def _run_section(section: str, device_name: str, output: Path) -> None:
    from triton.errors import TritonError

    device = torch_device(device_name)
    torch.cuda.set_device(device)
    place, copy_rate = environment(device), copy_rate_of(device)
    result = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"rows": {}}
    result |= {
        "device_name": place.device_name,
        "driver": place.driver,
        "runtime": place.runtime,
        "versions": dict(place.versions),
    }
    result.setdefault("copy_bytes_per_s", {})[section] = copy_rate
    for name, case in SECTIONS[section](device, copy_rate):
        try:
            with torch.no_grad():
                row = {"status": "ok", **case()}
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            AssertionError,
            ImportError,
            TritonError,
        ) as error:
            row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
        result["rows"][name] = row
        _write(output, result)
        print(name, json.dumps(row), flush=True)
        torch.cuda.empty_cache()


def _write(path: Path, result: dict[str, object]) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    main()
