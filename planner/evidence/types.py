"""Evidence: what forward and backward passes found out about the weights, as a file that a plan may cite.

Numbers for people and for citing stand in the JSON file; the arrays that predictions are computed from lie beside it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planner.plan import CheckpointRef
from planner.records import Record
from planner.words import UnitWords

__all__ = [
    "EVIDENCE_SCHEMA",
    "ArraysRef",
    "Ceiling",
    "EditKind",
    "EvidenceFile",
    "Gauge",
    "Gradient",
    "LeadingDirection",
    "Objective",
    "ObjectiveKind",
    "Stability",
    "TensorSensitivity",
    "TextUsed",
    "TopUnit",
    "UnitSensitivity",
]

EVIDENCE_SCHEMA = "planner/evidence@1"
ObjectiveKind = Literal["text", "contrast", "choice"]
EditKind = Literal["tensors", "units"]


class TextUsed(Record):
    """One text that was measured on."""

    role: Literal["goal", "against", "choices", "drift"]
    """goal: the text to become likelier. against: the text to become less likely, in a contrast. choices: questions
    with answers. drift: neutral text, on which the model should stay as it is."""
    file: str
    """The file, as it was named."""
    digest: str
    """BLAKE3 of its bytes."""
    documents: int
    """Documents that were used: the first of a seeded shuffle."""
    tokens: int
    """Tokens that were predicted in them."""


class Objective(Record):
    """The loss whose sensitivities were measured."""

    kind: ObjectiveKind
    """text: nats per token of the goal text. contrast: that, minus nats per token of the text against. choice: the
    cross-entropy of the right answer among the choices, nats per question."""
    loss: float
    """Its value for the model as it is."""
    calibrated_loss: float
    """The same with the logits divided by `temperature`."""
    temperature: float
    """The logit temperature at which the loss of the goal text (of the choices) is lowest."""
    accuracy: float | None = None
    """Share of the questions answered rightly; null for other kinds."""
    margin: float | None = None
    """Mean log-likelihood of the right choice minus that of all the others together, nats; null for other kinds."""


class Gradient(Record):
    """How the loss changes with one number by which weights are multiplied, or which is added to them.

    A scale is measured in log units: a factor of 1.01 is a step of 0.00995. All losses are those of the objective.
    """

    raw: float
    """d loss / d step for the model as it is."""
    raw_se: float | None
    """Standard error of `raw` over documents; null with fewer than two groups of them."""
    calibrated: float
    """d loss / d step at the calibrated temperature, where a mere change of temperature changes nothing at first order.
    """
    calibrated_se: float | None
    """Standard error of `calibrated` over documents."""
    stable: bool | None
    """Whether two halves of the documents agree on the sign of `calibrated`; null with fewer than two groups."""
    curvature: float
    """d² loss / d step² at the calibrated temperature, temperature projected out: Fisher information."""
    drift: float
    """Twice the KL divergence, in nats per token of the drift text, of a step of one: its Fisher information there."""
    step: float | None
    """The step that the two together call best; null where there is no curvature."""
    gain: float
    """What that step alone, or one of length 1 in its direction where it is longer, is predicted to take off the
    calibrated loss. What lies farther is not predicted."""


class TopUnit(Record):
    """One row or column of a tensor."""

    index: int
    """Which, counted from 0."""
    calibrated: float
    """d loss / d log of its factor, at the calibrated temperature."""
    calibrated_se: float | None
    """Standard error over documents."""


class LeadingDirection(Record):
    """The best approximation of the gradient of a matrix by one of rank k, from a random sketch of it."""

    strength: float
    """Its largest singular value: d loss / d step for a step of one along u v^T, with unit vectors u and v."""
    share: float
    """Share of the squared norm of the sketched gradient that this direction holds."""
    agreement: float | None
    """|cosine| between the directions that two halves of the documents give; near 0 for noise."""


class TensorSensitivity(Record):
    """What was measured of one tensor."""

    name: str
    """The tensor."""
    role: str
    """Its role."""
    layer: int | None
    """Its layer; null outside the layers."""
    rows: int
    """Rows of it as a matrix; leading dimensions count as rows, and a vector is one row."""
    columns: int
    """Columns of it."""
    scale: Gradient
    """All of it times one factor."""
    shift: Gradient
    """One number added to all of it."""
    by_row: float
    """Predicted gain of a factor for each row, judged on documents that did not choose it; the same damping for all."""
    by_column: float
    """The same of a factor for each column."""
    top_rows: tuple[TopUnit, ...] = ()
    """The rows with the largest sensitivities."""
    top_columns: tuple[TopUnit, ...] = ()
    """The columns with the largest sensitivities."""
    direction: LeadingDirection | None = None
    """The leading direction of its gradient; null for vectors."""


class UnitSensitivity(Record):
    """A head or a neuron, whose output all its weights make together."""

    kind: Literal["head", "neuron"]
    """What it is."""
    layer: int | None
    """Its layer."""
    index: int
    """Which, counted from 0."""
    expert: int | None = None
    """The expert it belongs to; null where there are none."""
    scale: Gradient
    """Its output times one factor."""


class Stability(Record):
    """How far two halves of the documents agree on the sensitivities of whole tensors to scale."""

    correlation: float | None
    """Pearson correlation between the halves, calibrated."""
    sign_agreement: float | None
    """Share of tensors on whose sign they agree."""
    raw_correlation: float | None
    """Pearson correlation, raw."""


class Gauge(Record):
    """How many different edits there are among the scales of all measured tensors."""

    tensors: int
    """Scales that were measured."""
    independent: int
    """Rank of their Fisher information: the others change the same function in another way, or nothing."""
    at_most: int
    """The largest rank that so many documents can show."""
    temperature_within: bool
    """Whether a change of logit temperature is one of them."""


class Ceiling(Record):
    """The best that one kind of edit can be expected to reach here, temperature aside.

    From the second-order model around the weights as they are, which knows one step: its direction is chosen by one
    half of the documents and judged by the other, with the damping and the length that do best. Where there is much to
    win, several steps, each measured anew, go beyond it; where it is nothing, no search of this kind will find any.
    """

    kind: EditKind
    """tensors: one factor for each tensor. units: one for each row and column."""
    gain: float
    """Predicted fall of the calibrated loss on documents that the step was not chosen by; 0 where none was found."""
    gain_se: float | None
    """Its standard error over documents."""
    in_sample: float
    """The same on the documents that it was chosen by: too good to be true."""
    drift: float
    """Predicted KL divergence from the model as it is, on the drift text, nats per token, of that step."""
    hopeless: bool
    """Whether even the gain plus two standard errors is too small to be worth a search."""


class ArraysRef(Record):
    """The file of arrays that belongs to an evidence file."""

    file: str = Field(pattern=r"^[^/\\\x00-\x1f]{1,255}$")
    """Its name, in the same folder."""
    digest: str = Field(pattern=r"^blake3:[0-9a-f]{64}$")
    """BLAKE3 of its bytes."""


class EvidenceFile(Record):
    """Everything that one `planner probe` measured. It is bound to one fingerprint."""

    schema_: Literal["planner/evidence@1"] = Field(default="planner/evidence@1", alias="schema")
    """Kind and version of this file."""
    id: Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$")]
    """Digest of everything that decides what is measured: checkpoint, texts, options, versions."""
    created: str
    """When it was written, UTC."""
    checkpoint: CheckpointRef
    """The checkpoint it was measured on."""
    versions: dict[str, str]
    """Versions of what measured."""
    device: str
    """Where the model ran: cpu, cuda or mps."""
    dtype: str
    """What it ran in; sums are kept in float32 and float64."""
    seed: int
    """Of the shuffle, the sampled labels and the sketches."""
    max_tokens: int | None
    """Where documents were cut, in tokens after the BOS token; null at the model's context."""
    groups: int
    """Groups of documents that standard errors and curvature rest on; a document is a group where there are few."""
    texts: tuple[TextUsed, ...]
    """What was measured on."""
    objective: Objective
    """The loss."""
    stability: Stability
    """How much the documents agree."""
    gauge: Gauge
    """How many different edits there are."""
    ceilings: tuple[Ceiling, ...]
    """The best that each kind of edit can reach."""
    tensors: tuple[TensorSensitivity, ...]
    """Every tensor that was measured, in the order of the checkpoint."""
    units: tuple[UnitSensitivity, ...]
    """The heads and neurons with the largest gains."""
    words: tuple[UnitWords, ...] = ()
    """The tokens that some of these speak of, by the direct path between embedding and logits."""
    not_measured: dict[str, str]
    """Tensors that were not measured, and why."""
    arrays: ArraysRef
    """The arrays."""
