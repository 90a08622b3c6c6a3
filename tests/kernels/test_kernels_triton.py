"""This package's Triton kernels: on the GPU where there is one, in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: its kernels are not tested")

ROOT = Path(__file__).parents[2]


def test_kernels_agree_with_their_references() -> None:
    # A process of its own: the interpreter is chosen when triton is first imported.
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton_checks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all agree" in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("kernel", ["delta step", "jet step", "convolution", "its taps", "its inputs"])
def test_kernels_compile_for_hopper(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At JetBlock's shapes in bf16, by Triton and ptxas: the interpreter accepts what a compiler does not."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hwsearch.kernels.delta_rule import triton as delta
    from hwsearch.kernels.dynamic_conv import triton as conv
    from hwsearch.kernels.jet_step import triton as jet

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    head = {"H": 12, "K": 96, "V": 256, "BLOCK_K": 128, "DTYPE": tl.float32}
    tile = {"W": 4, "WIDTH": 4, "BLOCK_T": 16, "BLOCK_D": 64, "DTYPE": tl.float32}
    function, constants, warps = {
        "delta step": (delta._kernel, {**head, "GROUP": 1, "BLOCK_V": delta.TILE // 128}, delta.WARPS),
        "jet step": (
            jet._kernel,
            {**head, "W": 4, "WIDTH": 4, "BLOCK_V": jet.TILE // 128},
            jet.WARPS,
        ),
        "convolution": (conv._forward_kernel, tile, 4),
        "its taps": (conv._taps_kernel, tile, 4),
        "its inputs": (conv._inputs_kernel, tile, 4),
    }[kernel]
    numbers = {"scale": "fp32", "eps": "fp32", "l2_eps": "fp32", "norm_eps": "fp32", "T": "i32", "D": "i32"}
    wide = {"scratch": "*fp32", "dsum": "*fp32"}
    if kernel.endswith("step"):
        wide |= {"state": "*fp32", "new_state": "*fp32"}
    types = {name: numbers.get(name, wide.get(name, "*bf16")) for name in function.arg_names}
    source = ASTSource(
        function,
        {name: "constexpr" if name in constants else kind for name, kind in types.items()},
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert built.asm["cubin"]
