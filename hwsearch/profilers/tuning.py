"""What autotuners chose: Triton's (this package's kernels and flash-linear-attention's) and cuDNN's.

Autotuning happens in a function's first call, which is never timed. Its choice is part of what was measured: the same
kernel with other tile sizes is another kernel.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

__all__ = ["tuned", "tuned_since"]


def tuned() -> Mapping[str, int]:
    """Triton's autotuned kernels, by module and name, and how many shapes each has been tuned for so far."""
    return {name: len(kernel.cache) for name, kernel in _kernels().items()}


def tuned_since(before: Mapping[str, int]) -> dict[str, str]:
    """What the kernels that were tuned since then chose last, and cuDNN's search where it is on."""
    chosen = {
        name.rpartition(".")[2]: str(next(reversed(kernel.cache.values())))
        for name, kernel in _kernels().items()
        if len(kernel.cache) > before.get(name, 0)
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.backends.cudnn.benchmark:
        chosen["cudnn"] = "benchmark"
    return chosen


def _kernels() -> dict[str, Any]:
    autotuner = sys.modules.get("triton.runtime.autotuner")
    return {} if autotuner is None else _made(autotuner.Autotuner, len(sys.modules))


@lru_cache(maxsize=1)
def _made(kind: type, modules: int) -> dict[str, Any]:
    """Kernels of that kind, fla's own among them. They come with modules: looked for again when there are more."""
    # issubclass, not isinstance: the latter asks an object for its class, and some answer with a warning.
    kernels = (thing for thing in gc.get_objects() if issubclass(type(thing), kind))
    return {f"{kernel.base_fn.__module__}.{kernel.base_fn.__name__}": kernel for kernel in kernels}
