"""What a tool is, and the bench that all tools work on.

A tool gives a language model one look at what was measured, in compact text. Whatever it says of a tensor, it says
under the name that `Aliases` gives it; whatever comes from the checkpoint's own files is quoted. A result can be wrong
for the goal, but it can hold no instruction in a stranger's words.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from planner.analysts.aliases import Aliases, quoted
from planner.analysts.base import Brief
from planner.analysts.tools.rows import MeasuredRows
from planner.analysts.wire import strict
from planner.evidence import EvidenceFile
from planner.plan import nearest
from planner.profile import TensorProfile, peer_groups
from planner.profile.peers import STATISTICS
from planner.records import Record

__all__ = ["A", "AgentTool", "Bench", "ToolRefused"]

A = TypeVar("A", bound=Record)
_LONGEST_ROLE = 48
_LONGEST_REASON = 200
_SHORTEST = 8
_NOTHING_MEASURED = "nothing was measured by forward and backward passes: there are no sensitivities here"


class ToolRefused(ValueError):
    """A tool cannot do what it was asked. The message is for the model: what is wrong, and what there is instead."""


@dataclass
class Bench:
    """What the tools work on, with what is worked out once and asked for often."""

    brief: Brief
    aliases: Aliases

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor as a model sees it, in the order of the files."""
        return tuple(self.aliases.shown(tensor.name) for tensor in self.brief.profile.tensors)

    @cached_property
    def roles(self) -> dict[str, str]:
        """The shown form of every role by the role, in the order in which they occur.

        A role is a part of a name: one that occurs in a name of known words is shown as it is, any other is quoted.
        """
        hidden = self.aliases.hidden
        plain = {tensor.role for tensor in self.brief.profile.tensors if tensor.name not in hidden}
        every = dict.fromkeys(tensor.role for tensor in self.brief.profile.tensors)
        return {role: role if role in plain else quoted(role, longest=_LONGEST_ROLE) for role in every}

    @cached_property
    def peers(self) -> dict[str, list[TensorProfile]]:
        """By name: the tensors of the same role, shape and dtype in the layers, the tensor itself among them."""
        groups = peer_groups(self.brief.profile.tensors)
        return {tensor.name: group for group in groups for tensor in group}

    @cached_property
    def evidence(self) -> EvidenceFile:
        """What was measured. Raises `ToolRefused` where nothing was."""
        if self.brief.evidence is None:
            raise ToolRefused(_NOTHING_MEASURED)
        return self.brief.evidence[0]

    @cached_property
    def rows(self) -> MeasuredRows:
        """Every row and column that was measured. Raises `ToolRefused` where nothing was."""
        if self.brief.evidence is None:
            raise ToolRefused(_NOTHING_MEASURED)
        return MeasuredRows(self.brief, self.brief.evidence)

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """The statistics that some tensor of this profile has; spectra, for example, are only made on request."""
        tensors = self.brief.profile.tensors
        return tuple(
            name for name, measure in STATISTICS.items() if any(measure.of(tensor) is not None for tensor in tensors)
        )

    def tensors(self, shown: Iterable[str]) -> list[TensorProfile]:
        """The tensors of these names. Raises `ToolRefused` with every name that is none, and what is near it."""
        by_name = self.brief.profile.by_name
        found = [(name, by_name.get(self.aliases.real(name))) for name in shown]
        if wrong := [name for name, tensor in found if tensor is None]:
            raise ToolRefused("; ".join(f"no tensor is called {quoted(name)}{self._instead(name)}" for name in wrong))
        return [tensor for _, tensor in found if tensor is not None]

    def _instead(self, name: str) -> str:
        if close := nearest(name, self.names):
            return f" (nearest: {', '.join(close)})"
        return f" (there are {len(self.names)}, such as {', '.join(self.names[:3])}; list_tensors shows them)"

    def told(self, text: str) -> str:
        """A text of the planner's own that may name tensors or roles: aliases for them, plain characters only."""
        for spelled, shown in self._spellings:
            text = text.replace(spelled, shown)
        text = text.replace(str(Path.home()), "~")  # where the user's files lie is nobody's business
        return self.aliases.cleaned(text)

    @cached_property
    def _spellings(self) -> list[tuple[str, str]]:
        """Every form of a hidden name, then of a role that is part of one, with what is said instead.

        The longest first, as one may be part of another. What stands in holds nothing of the text, so that no later
        one is found inside it.
        """
        hidden = self.aliases.hidden
        roles: dict[str, str] = {}
        for tensor in self.brief.profile.tensors:
            if tensor.name in hidden and self.roles[tensor.role] != tensor.role:
                roles.setdefault(tensor.role, f"the role of {hidden[tensor.name]}")
        reason = self.brief.model.reason  # it may quote config.json
        return [(reason, quoted(reason, longest=_LONGEST_REASON))] * bool(reason) + [*_forms(hidden), *_forms(roles)]


def _forms(instead: Mapping[str, str]) -> list[tuple[str, str]]:
    """Texts as they are, and as Python and JSON quote them; a short one that is not quoted is found in other words."""
    found = [
        (form, shown)
        for text, shown in instead.items()
        for form in {text, repr(text), json.dumps(text), json.dumps(text, ensure_ascii=False)}
        if len(form) >= _SHORTEST
    ]
    return sorted(found, key=lambda one: len(one[0]), reverse=True)


class AgentTool(ABC, Generic[A]):
    """One tool. Its docstring is what the model is told of it; its arguments are described by their own docstrings."""

    name: ClassVar[str]
    """What the model calls it."""
    Arguments: ClassVar[type[Record]]
    """What it takes. A field that may be null need not be given."""
    less: ClassVar[str] = "ask for less"
    """How a result that was cut is asked for in parts."""

    def available(self, bench: Bench) -> bool:  # noqa: ARG002 - most need nothing
        """Whether there is what it needs."""
        return True

    def parameters(self, bench: Bench) -> dict[str, Any]:  # noqa: ARG002 - some depend on the policy
        """The schema of its arguments inside the strict subset: all required, null for what is not given."""
        schema = strict(self.Arguments)
        for name, field in self.Arguments.model_fields.items():
            schema["properties"][name]["description"] = " ".join((field.description or "").split())
        return schema

    @abstractmethod
    def run(self, arguments: A, bench: Bench) -> str:
        """What there is to say. Raises `ToolRefused`."""
