"""What a checkpoint's tensors are for: roles by name, and the map of a known family with its dataflow."""

from __future__ import annotations

from planner.architecture.heads import HeadBand, head_layout
from planner.architecture.mapping import map_of
from planner.architecture.model_map import Axis, Band, ModelMap, Parameter, unknown_map
from planner.architecture.roles import TensorRole, fused_experts, role_of
from planner.architecture.summary import ModelSummary, summary_of

__all__ = [
    "Axis",
    "Band",
    "HeadBand",
    "ModelMap",
    "ModelSummary",
    "Parameter",
    "TensorRole",
    "fused_experts",
    "head_layout",
    "map_of",
    "role_of",
    "summary_of",
    "unknown_map",
]
