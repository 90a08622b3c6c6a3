"""Measuring operators on the machine at hand: the plan, the workbench, the timer, the store of measurements.

`store`, `plan`, `timing` and `run` import without torch; measuring needs it.
"""

from __future__ import annotations

__all__: list[str] = []
