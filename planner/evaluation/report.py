"""What an evaluation found, as it is written down."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from planner.evidence.prediction import PredictedChange
from planner.records import Record

__all__ = [
    "Calibrated",
    "Controls",
    "DriftResult",
    "Evaluation",
    "Foretold",
    "GateResult",
    "MetricResult",
    "NoiseFloor",
    "RandomPlans",
    "RawVerdict",
    "Side",
    "Spread",
    "SuiteIdentity",
    "TemperatureAlone",
    "Temperatures",
    "TextIdentity",
    "Verdict",
]

RawVerdict = Literal["improved", "worse", "no detectable change"]
Verdict = Literal["improved", "worse", "temperature only", "no detectable change"]


class Side(Record):
    """One of the two checkpoints."""

    name: str
    """What the user called it: a path or a Hugging Face id."""
    fingerprint: str | None = None
    """The checkpoint's fingerprint, where the caller knows it."""


class TextIdentity(Record):
    """A text that was measured on."""

    name: str
    """The file as the suite names it."""
    digest: str
    """BLAKE3 of the file's bytes, as blake3:<hex>."""
    documents: int
    """Documents in the file."""


class SuiteIdentity(Record):
    """The suite and the texts that were used."""

    name: str
    """The suite file's name without its ending."""
    digest: str
    """BLAKE3 of the suite file's bytes, as blake3:<hex>."""
    texts: tuple[TextIdentity, ...]
    """Every text of the suite."""


class Temperatures(Record):
    """The best logit temperature of each side on all documents; 1 means that the logits are right as they are."""

    baseline: float
    """Of the baseline. Above 1: its predictions are too confident for this text."""
    candidate: float
    """Of the candidate."""


class Calibrated(Record):
    """The comparison with each side at its own best logit temperature, cross-fitted on other documents."""

    baseline: float
    """Calibrated loss of the baseline, nats per token."""
    candidate: float
    """Calibrated loss of the candidate, nats per token."""
    difference: float
    """Candidate minus baseline, nats per token; what is left when a change of temperature is taken away."""
    interval: tuple[float, float]
    """95 % percentile bootstrap interval of the difference, over documents."""
    p_value: float
    """Two-sided, paired sign-flip permutation test over documents."""
    p_holm: float
    """The p-value adjusted for the number of metrics (Holm); the verdict rests on it."""
    mde: float | None
    """The smallest true difference that this text shows with 80 % power, nats per token; null below 6 documents."""
    verdict: RawVerdict
    """As the verdict of a metric, of the calibrated difference alone."""
    temperatures: Temperatures
    """Fitted on all documents, for information; the difference uses one per fold."""
    at_limit: bool
    """Whether a best temperature lies at the limit of the search. Such a comparison is never called an improvement."""


class MetricResult(Record):
    """One metric of the suite."""

    name: str
    """As in the suite."""
    kind: Literal["text_loss"]
    """As in the suite."""
    n: int
    """Documents compared."""
    tokens: int
    """Tokens predicted by each side."""
    baseline: float
    """Loss of the baseline, nats per token: the sum over all tokens of all documents, divided by their number."""
    candidate: float | None
    """Loss of the candidate; null when it is not finite on some document."""
    difference: float | None
    """Candidate minus baseline, nats per token; null when the candidate's loss is not finite."""
    interval: tuple[float, float] | None
    """95 % percentile bootstrap interval of the difference, over documents."""
    p_value: float | None
    """Two-sided, paired sign-flip permutation test over documents; not adjusted."""
    p_holm: float | None
    """The p-value adjusted for the number of metrics (Holm); the raw verdict rests on it."""
    test: str
    """How the p-values were computed."""
    better: Literal["lower"] = "lower"
    """Which direction is better."""
    share_better: float | None
    """Share of documents on which the candidate's raw loss is lower."""
    mde: float | None
    """The smallest true raw difference that this text shows with 80 % power, nats per token; null below 6 documents."""
    raw_verdict: RawVerdict
    """Of the raw difference alone: improved or worse when the 95 % interval excludes 0, p_holm is below 0.05 and the
    difference is at least 0.0001 nats per token, the resolution of the measurement."""
    verdict: Verdict
    """worse: the raw loss is. improved: the calibrated loss is, and the raw loss is not worse. temperature only: the
    raw loss improved, the calibrated loss did not."""
    nonfinite_documents: int
    """Documents on which the candidate's loss is NaN or infinite; any makes the verdict "worse"."""
    calibrated: Calibrated | None
    """The comparison without differences of temperature; null when the candidate's loss is not finite."""


class DriftResult(Record):
    """How far the candidate's predictions are from the baseline's, over every predicted token of the drift text."""

    text: str
    """The text, as the suite names it."""
    tokens: int
    """Tokens predicted."""
    kl_mean: float | None
    """Mean over tokens of KL(baseline || candidate), nats; null when it is not finite on some token."""
    kl_p99: float | None
    """Its 99th percentile over tokens, nats."""
    top1_agreement: float
    """Share of tokens at which both sides hold the same continuation for the most likely."""
    nonfinite_tokens: int
    """Tokens at which the divergence is NaN or infinite."""


class TemperatureAlone(Record):
    """What a logit scale gains by itself: the baseline at its own best temperature, cross-fitted on other documents."""

    difference: float
    """Calibrated minus raw loss of the baseline, nats per token: what one number buys without any change of weights."""
    candidate: float | None
    """The candidate's raw difference, to compare with; null when its loss is not finite."""
    share: float | None
    """How much of the candidate's raw gain is a change of temperature: the part that is gone once both sides are at
    their best temperature, 1 - calibrated / raw difference. Above 1: calibrated, the candidate is worse. Null when the
    candidate gains less than 0.0001 nats per token raw."""


class Spread(Record):
    """A difference over the random plans, nats per token."""

    mean: float
    """Their mean."""
    sd: float | None
    """Their standard deviation (n - 1); null for a single one."""
    min: float
    """The best of them."""
    max: float
    """The worst of them."""


class RandomPlans(Record):
    """The candidate among plans of the same strengths in random places and directions.

    Each keeps the multiset of the plan's strengths. A factor goes to a tensor of the same role and shape and becomes
    its inverse with probability 1/2; the factors of a vector over rows or columns also change places within it, each
    inverted or not (neighbours that are equal throughout, such as the rows of a head, stay together). An offset goes
    to a tensor of the same role and shape with a random sign. Any other change stays in its tensor and keeps its norm:
    its rows (of a vector, the elements) change places, each with a random sign. Values are rounded as they would be
    stored. Every random plan differs from the others and from the candidate's.
    """

    n: int
    """Random plans that were measured. Fewer than asked for where no more different ones were found."""
    asked: int
    """How many were asked for."""
    nonfinite: int
    """Those whose loss is not finite. They count as worse than the candidate and are left out of the spreads."""
    calibrated: Spread | None
    """Their calibrated differences from the baseline; null when none is finite."""
    raw: Spread | None
    """Their raw differences from the baseline; null when none is finite."""
    as_good: int
    """Random plans whose calibrated difference is at least as good as the candidate's."""
    rank: int
    """Of the candidate by calibrated difference: 1 when it is better than all of them."""
    rank_p: float
    """(1 + as_good) / (n + 1): how likely a plan that is as random as they are ranks so well."""
    z: float | None
    """(candidate - mean) / sd of the calibrated difference; null where they are
    all equal, but for rounding."""
    improved_raw: int
    """Random plans whose raw difference alone would be called "improved": what significance without a control is
    worth here."""
    improved_calibrated: int
    """Random plans whose calibrated difference would be called "improved"."""
    methods: dict[Literal["factor", "factors", "offset", "change"], int]
    """Tensors of the plan by how their change was rearranged: one factor; a factor for each row or column; an offset;
    any other change, as the difference that it makes."""


class NoiseFloor(Record):
    """The baseline against itself, its documents in another order and in other batches: rounding and nothing else."""

    document: float
    """The largest absolute difference of a document's loss, nats per token."""
    mean: float
    """The absolute difference of the loss over all tokens, nats per token."""


class Controls(Record):
    """What the difference of one metric is to be compared with before anybody believes it."""

    metric: str
    """The metric: the first one with a gate "improved", else the first of the suite."""
    temperature: TemperatureAlone
    """What a logit scale would do alone."""
    random: RandomPlans | None
    """The candidate among random plans; null where they could not be made or were not asked for."""
    no_random: str | None
    """Why there are no random plans; null where there are."""
    noise_floor: NoiseFloor | None
    """Null where no controls were asked for."""


class GateResult(Record):
    """What a gate said."""

    name: str
    """The metric, where there is one, and the rule."""
    passed: bool
    """Whether the candidate passed."""
    why: str
    """The numbers it was decided by, in words."""


class Foretold(Record):
    """What the evidence predicted of the plan that made the candidate, beside what was measured."""

    evidence: str
    """The id of the evidence."""
    metric: str
    """The metric it is compared with."""
    same_text: bool
    """Whether that metric's text is the evidence's goal text; on another one the prediction was never for it."""
    raw: PredictedChange
    """Predicted change of the loss."""
    measured_raw: float | None
    """Measured change of the loss; null where it is not finite."""
    calibrated: PredictedChange
    """Predicted change of the calibrated loss."""
    measured_calibrated: float | None
    """Measured change of the calibrated loss."""
    drift: float
    """Predicted KL divergence, nats per token, on the evidence's drift text."""
    measured_drift: float | None
    """Measured KL divergence on the suite's drift text."""
    trusted: bool
    """Whether the plan stays where such predictions were found to hold."""
    why: str
    """Why, or why not."""


class Evaluation(Record):
    """A candidate compared with its baseline."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_: Literal["planner/evaluation@1"] = Field(default="planner/evaluation@1", alias="schema")
    """The format of this document."""
    baseline: Side
    """The checkpoint before the change."""
    candidate: Side
    """The checkpoint after it."""
    suite: SuiteIdentity
    """What was measured on."""
    seed: int
    """Of the bootstrap, of random sign flips and of random plans; nothing else is random."""
    dtype: Literal["float32"] = "float32"
    """The models' arithmetic."""
    versions: dict[str, str]
    """Of the planner and of the libraries that computed the numbers."""
    correction: str
    """How p-values were adjusted for several metrics."""
    metrics: tuple[MetricResult, ...]
    """In the order of the suite."""
    drift: DriftResult
    """Distance of the predictions."""
    controls: Controls
    """What the first decisive metric is compared with beside the baseline."""
    foretold: Foretold | None = None
    """What the evidence predicted; null without evidence, or where the plan is not known."""
    gates: tuple[GateResult, ...]
    """In the order of the suite."""
    accepted: bool
    """Whether every gate passed; true for a suite without gates, which refuses nothing."""
