"""token_meanings: which tokens a neuron, a head, a channel or a token speaks of, from the weights alone."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.meanings import said_of, token_text
from planner.records import Record
from planner.words import Unit, UnitWords, words_of

__all__ = ["TokenMeanings"]

_MOST = 8
_TOKENS = 6
_Index = Annotated[int, Field(ge=0, lt=2**31)]


class Units(Record):
    """Which units."""

    kind: Literal["neuron", "head", "channel", "token"]
    """neuron of an MLP, query head, channel of the residual stream, or token by its id."""
    layer: int | None = Field(default=None, ge=0, lt=2**31)
    """The layer of a neuron or head; for a channel the layer after which it is looked at, null after the last; null for
    a token."""
    indices: tuple[_Index, ...] = Field(min_length=1, max_length=_MOST)
    """1 to 8 numbers, counted from 0."""
    expert: int | None = Field(default=None, ge=0, lt=2**31)
    """The expert of a neuron, where a layer has several; else null."""


class TokenMeanings(AgentTool[Units]):
    """Which tokens some units promote, suppress and read, by the direct path between embedding and logits alone: what
    other layers add is not in it, so it describes and proves nothing."""

    name: ClassVar[str] = "token_meanings"
    Arguments: ClassVar[type[Record]] = Units
    less: ClassVar[str] = "name fewer indices"

    def run(self, arguments: Units, bench: Bench) -> str:
        """A line for each unit."""
        kind, layer, expert = arguments.kind, arguments.layer, arguments.expert
        if layer is None and kind in ("neuron", "head"):
            raise ToolRefused(f"say which layer the {kind} is in")
        if layer is not None and kind == "token":
            raise ToolRefused("a token is in no layer; give null")
        if expert is not None and kind != "neuron":
            raise ToolRefused(f"a {kind} belongs to no expert; give null")
        units = [Unit(kind, layer, index, expert) for index in dict.fromkeys(arguments.indices)]
        found = words_of(bench.brief.checkpoint, bench.brief.model, units, top=_TOKENS)
        return "\n".join(f"{_title(words)}: {said_of(words, most=_TOKENS, values=True)}" for words in found)


def _title(words: UnitWords) -> str:
    title = f"{words.kind} {words.index}"
    title += "" if words.text is None else f" {token_text(words.text, words.index)}"
    title += "" if words.expert is None else f" of expert {words.expert}"
    if words.kind == "channel":
        return f"{title} after {'the last layer' if words.layer is None else f'layer {words.layer}'}"
    return title if words.layer is None else f"{title} of layer {words.layer}"
