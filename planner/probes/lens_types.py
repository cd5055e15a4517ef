"""What the lens found, as it is written down."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.evaluation.report import Side
from planner.records import Record

__all__ = [
    "Fate",
    "Lens",
    "LensLayer",
    "LensText",
    "LikelyToken",
    "PromptLayer",
    "PromptLens",
    "Recovery",
    "RecoveryLayer",
]

Fate = Literal[
    "amplified", "kept", "diluted", "repaired", "entered at the end", "behind the stream", "not seen", "not finite"
]


class LensText(Record):
    """The text that was measured on."""

    name: str
    """The file as the user named it."""
    digest: str
    """BLAKE3 of the file's bytes, as blake3:<hex>."""
    documents: int
    """Documents that were measured on: the first ones of the file."""
    max_tokens: int | None
    """Tokens of a document at most, its BOS token apart; null: as many as the model's context holds."""


class LensLayer(Record):
    """The lens at one place of the residual stream, over all positions."""

    layer: int | None
    """The stream after this decoder block, counted from 0; null: before the first block."""
    loss: float | None
    """Nats a token if the model ended here; null without a text, and where it is not finite."""
    kl: float | None
    """Mean KL(final prediction || prediction of the lens) in nats; null where it is not finite."""
    top1_agreement: float
    """Share of positions at which the lens and the model hold the same token for the most likely."""


class LikelyToken(Record):
    """One continuation."""

    id: int
    """Its number in the vocabulary."""
    text: str
    """What it spells."""
    probability: float | None
    """Of 1; null where it is not finite."""


class PromptLayer(Record):
    """The lens at one place of the residual stream, at the last position of a prompt."""

    layer: int | None
    """The stream after this decoder block, counted from 0; null: before the first block."""
    top: tuple[LikelyToken, ...]
    """The most likely continuations, most likely first."""
    top_changed: tuple[LikelyToken, ...] = ()
    """The same of the changed model, where there is one."""


class PromptLens(Record):
    """The lens of one prompt."""

    prompt: str
    """The text whose continuation is predicted."""
    tokens: int
    """Tokens of it, a BOS token included."""
    layers: tuple[PromptLayer, ...]
    """Before the first block, and after each."""


class RecoveryLayer(Record):
    """How the changed model differs at one place of the residual stream: h is the stream, h' the changed one."""

    layer: int | None
    """The stream after this decoder block, counted from 0; null: before the first block."""
    relative_norm: float | None
    """‖h' - h‖ / ‖h‖, the mean over positions; null where it is not finite."""
    relative_norm_spread: float | None
    """Standard deviation, over documents, of a document's mean; null for one document, and where it is not finite."""
    cosine: float | None
    """cos(h', h), the mean over positions; null where it is not finite."""
    difference: float | None
    """‖h' - h‖, the mean over positions; null where it is not finite."""
    share_left: float | None
    """`difference` as a share of the one at the place where it is largest; null where none is, or not finite."""
    kl: float | None
    """Mean KL(lens of h || lens of h') in nats, each by its own model's norm and head; null where it is not finite."""


class Recovery(Record):
    """What becomes of a change on its way through the layers."""

    changed_layers: tuple[int, ...]
    """Decoder blocks whose own weights differ. Weights outside of the blocks (embedding, head) are not listed."""
    layers: tuple[RecoveryLayer, ...]
    """Before the first block, and after each."""
    enters: int | None
    """Index into `layers` of the first place where the difference is above `resolution`; null where it is nowhere."""
    compared: int | None
    """Index into `layers` of the place that the last one is compared with: the first from which on no block adds a
    change of its own; null where the difference is nowhere."""
    resolution: float
    """The `relative_norm` below which a difference is float32 rounding."""
    fate: Fate
    """By the last place against the one it is compared with. amplified: the relative norm grew by more than a tenth.
    kept: it stayed within a tenth. repaired: it fell, and the norm of the difference by more than a tenth as well.
    diluted: it fell because the stream grew. entered at the end: no block follows. behind the stream: only the norm or
    the head differ. not seen: nothing differs. not finite: the changed stream holds no numbers."""
    sentence: str
    """The same in words."""


class Lens(Record):
    """What each layer of a model would predict, and, with a change, how much of it survives at each layer."""

    schema_: Literal["planner/lens@1"] = Field(default="planner/lens@1", alias="schema")
    """The format of this document."""
    model: Side
    """The checkpoint."""
    candidate: Side | None = None
    """The checkpoint it was compared with, if any."""
    plan: str | None = None
    """Id of the plan whose changes were made in memory, if any."""
    text: LensText | None = None
    """What `layers` and `recovery` were measured on; null: on the prompts."""
    positions: int
    """Positions that `layers` and `recovery` are means over."""
    layers: tuple[LensLayer, ...]
    """The unchanged model: before the first block, and after each."""
    prompts: tuple[PromptLens, ...] = ()
    """One for each prompt."""
    recovery: Recovery | None = None
    """With a plan or a candidate."""
    versions: dict[str, str]
    """Of the planner and of the libraries that computed this."""
