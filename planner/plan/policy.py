"""Policy: the user's limits, which no analyst can widen."""

from __future__ import annotations

import json
import tomllib
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from planner.errors import PolicyInvalid
from planner.operations import OPERATIONS
from planner.plan.problems import field_path
from planner.records import Record

__all__ = ["Effect", "Policy", "policy_as_toml", "read_policy"]

Effect = Literal[
    "void",
    "ignored",
    "invariant",
    "shifts_logits",
    "rescales_logits",
    "loader_dependent",
    "effective",
    "unknown",
]
"""What a modification does, judged before it is applied; `planner check` says it of each."""


class Policy(Record):
    """What a plan may do at most. The defaults allow every operation, within limits that a slip would exceed."""

    operations: tuple[str, ...] = tuple(OPERATIONS)
    """Kinds of operation that are allowed."""
    protected: tuple[str, ...] = ()
    """Names of tensors that may not be touched; `*`, `?` and `[...]` match as in a shell."""
    largest_relative_change: Annotated[float, Field(gt=0)] = 1.0
    """Largest ‖ΔW‖F/‖W‖F of any tensor, all its modifications together. 1.0 still allows setting it to zero."""
    largest_total_change: Annotated[float, Field(gt=0)] = 1.0
    """Largest ‖ΔW‖/‖W‖ over all tensors of the checkpoint together, as if they were one long vector."""
    most_modifications: Annotated[int, Field(gt=0)] = 100
    """How many modifications a plan may hold."""
    most_tensors: Annotated[int, Field(gt=0)] = 2000
    """How many tensors a plan may reach. Dense models have fewer; a short pattern can name all of 18,000 experts."""
    refuse: tuple[Effect, ...] = ("void",)
    """Effects that no modification may have: void changes no stored bit; ignored and invariant are worth adding."""
    allow_void: bool = False
    """Whether modifications that change no stored bit are accepted after all, as `--allow-void` does."""

    @field_validator("operations")
    @classmethod
    def _operations_exist(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [kind for kind in kinds if kind not in OPERATIONS]:
            raise ValueError(f"no such operation: {', '.join(unknown)}; there are {', '.join(OPERATIONS)}")
        return kinds

    @model_validator(mode="after")
    def _says_one_thing_of_void(self) -> Self:
        if self.allow_void and "void" in self.refuse and "refuse" in self.model_fields_set:
            raise ValueError("`refuse` holds void and `allow_void` is true; say one of the two")
        return self

    def protects(self, tensor: str) -> bool:
        """Whether the tensor of that name may not be touched."""
        return any(fnmatchcase(tensor, pattern) for pattern in self.protected)

    def refuses(self, effect: str, *, allow_void: bool = False) -> bool:
        """Whether no modification may have that effect; `allow_void` is what the command line says beside it."""
        return effect in self.refuse and not (effect == "void" and (allow_void or self.allow_void))


def read_policy(text: str) -> Policy:
    """A policy from TOML. Raises `PolicyInvalid` with every problem."""
    try:
        return Policy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PolicyInvalid(f"the policy is not TOML: {error}", hint=_FIELDS) from None
    except ValidationError as error:
        problems = "; ".join(f"{field_path(item['loc'])}: {item['msg']}" for item in error.errors())
        raise PolicyInvalid(f"the policy makes no sense: {problems}", hint=_FIELDS) from None


def policy_as_toml(policy: Policy) -> str:
    """Every field with its value, defaults included: a policy file that means this policy, a line a field."""
    values = {name: getattr(policy, name) for name in Policy.model_fields}
    if policy.allow_void:  # one of the two says it; `read_policy` refuses a file in which they disagree
        values["refuse"] = tuple(effect for effect in policy.refuse if effect != "void")
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # TOML knows JSON's escapes, but refuses a bare DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


_FIELDS = "fields: " + ", ".join(Policy.model_fields)
