"""nn.Modules of every mixer, the hybrid language model, checkpoints in and out.

The modules in here import torch, most of them transformers; this file does not. Code that may run without them calls
`require_transformers` first.
"""

from __future__ import annotations

import importlib.util

from hwsearch.errors import DependencyError

__all__ = ["require_transformers"]


def require_transformers(*, purpose: str) -> None:
    """Raise DependencyError where torch, transformers or safetensors is absent; `purpose` starts the message."""
    for package in ("torch", "transformers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise DependencyError(package, extra="hf", purpose=purpose)
