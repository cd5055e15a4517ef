"""What a tensor is for, read from its name: its role and its layer; and where its heads and experts lie."""

from __future__ import annotations

from planner.architecture.heads import HeadBand, head_layout
from planner.architecture.roles import TensorRole, fused_experts, role_of

__all__ = ["HeadBand", "TensorRole", "fused_experts", "head_layout", "role_of"]
