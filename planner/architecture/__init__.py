"""What a tensor is for, read from its name: its role and its layer."""

from __future__ import annotations

from planner.architecture.roles import TensorRole, role_of

__all__ = ["TensorRole", "role_of"]
