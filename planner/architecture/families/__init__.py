"""The families: one file each, found by itself. To add one, write a file that ends in `FAMILY = Family(...)`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from planner.architecture.families.family import Family

__all__ = ["Family", "families"]


@cache
def families() -> dict[str, Family]:
    """Every family, by model type."""
    found: dict[str, Family] = {}
    for module in iter_modules(__path__):
        family: Family | None = getattr(import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        for model_type in family.model_types if family else ():  # the others hold what several families share
            assert model_type not in found, f"two families declare {model_type}"
            assert family is not None, "it has model types"
            found[model_type] = family
    return found
