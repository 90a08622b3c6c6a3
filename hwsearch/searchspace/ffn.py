"""Feed-forward networks: parameters and operators in closed form."""

from __future__ import annotations

from typing import Literal

from hwsearch.operators import Operator
from hwsearch.searchspace.mixers import elementwise, linear
from hwsearch.searchspace.spec import PositiveInt, Spec
from hwsearch.searchspace.workload import Workload

__all__ = ["FFNSpec", "SwiGLU"]


class SwiGLU(Spec):
    """down(silu(gate(x)) * up(x)), no bias; gate and up run as one gemm."""

    kind: Literal["swiglu"] = "swiglu"
    intermediate_size: PositiveInt

    def parameters(self, hidden_size: int) -> int:
        """Trainable parameters, the layer's norm not counted."""
        return 3 * hidden_size * self.intermediate_size

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        """The operators of one forward pass, the layer's norm not counted."""
        return (
            linear(workload, hidden_size, 2 * self.intermediate_size),
            elementwise(workload, self.intermediate_size, reads=2, writes=1),
            linear(workload, self.intermediate_size, hidden_size),
        )


FFNSpec = SwiGLU
