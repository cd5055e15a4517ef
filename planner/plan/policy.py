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

__all__ = ["OPERATORS_POLICY", "Effect", "Policy", "policy_as_toml", "read_policy"]

OPERATORS_POLICY = "PLANNER_POLICY"
"""Environment variable that names a policy file: the limits of whoever runs the planner, where a command names none.
It stands above the policy that a plan records, which the author of the plan may have chosen."""

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
    largest_cumulative_change: Annotated[float, Field(gt=0)] | None = None
    """Largest ‖W - W₀‖F/‖W₀‖F of any tensor against the original, all patches in force together; null: as much as
    `largest_relative_change` allows one patch."""
    most_modifications: Annotated[int, Field(gt=0)] = 100
    """How many modifications a plan may hold."""
    most_tensors: Annotated[int, Field(gt=0)] = 2000
    """How many tensors a plan may reach. Dense models have fewer; a short pattern can name all of 18,000 experts."""
    refuse: tuple[Effect, ...] = ("void",)
    """Effects that no modification may have: void changes no stored bit; ignored and invariant are worth adding."""
    allow_void: bool = False
    """Whether modifications that change no stored bit are accepted after all, as `--allow-void` does."""
    signed_approval: bool = False
    """Whether a plan is applied only if its approval is signed, by one of the signers below."""
    allowed_signers: tuple[str, ...] = ()
    """Who may sign: lines of an OpenSSH allowed_signers file, and ids of shared keys (`hmac-sha256:...`). Where it
    names nobody, only the holder of a shared key can."""

    @field_validator("operations")
    @classmethod
    def _operations_exist(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [kind for kind in kinds if kind not in OPERATIONS]:
            raise ValueError(f"no such operation: {', '.join(unknown)}; there are {', '.join(OPERATIONS)}")
        return kinds

    @field_validator("allowed_signers")
    @classmethod
    def _a_line_a_signer(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if unfit := [line for line in lines if not line.strip() or not line.replace("\t", " ").isprintable()]:
            raise ValueError(f"{unfit[0]!r} is not one line of an allowed_signers file")
        return lines

    @model_validator(mode="after")
    def _says_one_thing_of_void(self) -> Self:
        if self.allow_void and "void" in self.refuse:
            if "refuse" in self.model_fields_set:
                raise ValueError("`refuse` holds void and `allow_void` is true; say one of the two")
            # Written to a file with its defaults filled in, the policy would say both, and could not be read again.
            object.__setattr__(self, "refuse", tuple(effect for effect in self.refuse if effect != "void"))
        return self

    @property
    def cumulative_limit(self) -> float:
        """Largest ‖W - W₀‖F/‖W₀‖F of any tensor against the original that is allowed."""
        return self.largest_cumulative_change or self.largest_relative_change

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
    """Every field that has a value, defaults included: a policy file that means this policy, a line a field."""
    values = {name: value for name in Policy.model_fields if (value := getattr(policy, name)) is not None}
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # TOML knows JSON's escapes, but refuses a bare DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


_FIELDS = "fields: " + ", ".join(Policy.model_fields)
