"""The map of a checkpoint, from config.json, the names and the shapes of its tensors; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.architecture.assembly import assemble
from planner.architecture.config import Config, Unreadable
from planner.architecture.families import families
from planner.architecture.model_map import ModelMap, unknown_map

__all__ = ["map_of"]


def map_of(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ModelMap:
    """The map; one that says why it is unknown where the family is, or where anything does not fit. Never an error."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return unknown_map("config.json names no model_type")
    family = families().get(model_type)
    if family is None:
        return unknown_map(f"the model type {model_type!r} has no declaration here")
    try:
        found = assemble(model_type, family.decoder(Config(dict(config))), shapes)
        found.own_code = bool(config.get("auto_map"))
        return found
    except Unreadable as error:
        return unknown_map(str(error), model_type)
