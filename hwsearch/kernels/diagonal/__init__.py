"""Diagonal recurrences: one with a decay per token and channel, one with fixed decays and several states a channel."""

from __future__ import annotations

from hwsearch.kernels.diagonal.scan import diagonal_scan
from hwsearch.kernels.diagonal.ssm import diagonal_ssm

__all__ = ["diagonal_scan", "diagonal_ssm"]
