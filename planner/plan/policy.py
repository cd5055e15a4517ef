"""Policy: the user's limits, which no analyst can widen."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from planner.errors import PolicyInvalid
from planner.operations import OPERATIONS
from planner.plan.problems import field_path
from planner.records import Record

__all__ = ["Policy", "read_policy"]


class Policy(Record):
    """What a plan may do at most. The defaults allow every operation and no more than a doubling of any tensor."""

    operations: tuple[str, ...] = tuple(OPERATIONS)
    """Kinds of operation that are allowed."""
    protected: tuple[str, ...] = ()
    """Names of tensors that may not be touched; `*`, `?` and `[...]` match as in a shell."""
    largest_relative_change: Annotated[float, Field(gt=0)] = 1.0
    """Largest ‖ΔW‖F/‖W‖F of any tensor, all its modifications together. 1.0 still allows setting it to zero."""
    most_modifications: Annotated[int, Field(gt=0)] = 100
    """How many modifications a plan may hold."""

    @field_validator("operations")
    @classmethod
    def _operations_exist(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [kind for kind in kinds if kind not in OPERATIONS]:
            raise ValueError(f"no such operation: {', '.join(unknown)}; there are {', '.join(OPERATIONS)}")
        return kinds

    def protects(self, tensor: str) -> bool:
        """Whether the tensor of that name may not be touched."""
        return any(fnmatchcase(tensor, pattern) for pattern in self.protected)


def read_policy(text: str) -> Policy:
    """A policy from TOML. Raises `PolicyInvalid` with every problem."""
    try:
        return Policy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PolicyInvalid(f"the policy is not TOML: {error}", hint=_FIELDS) from None
    except ValidationError as error:
        problems = "; ".join(f"{field_path(item['loc'])}: {item['msg']}" for item in error.errors())
        raise PolicyInvalid(f"the policy makes no sense: {problems}", hint=_FIELDS) from None


_FIELDS = "fields: " + ", ".join(Policy.model_fields)
