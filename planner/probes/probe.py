"""`probe`: measure which weights matter for a goal, and say how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from blake3 import blake3

from planner import __version__
from planner.architecture import ModelMap, map_of
from planner.checkpoint import Checkpoint
from planner.errors import CheckpointError, UsageError
from planner.evidence import (
    ArraysRef,
    EvidenceFile,
    Grouping,
    Layout,
    Measured,
    Objective,
    Sides,
    TextUsed,
    UnitSensitivity,
    arrays_bytes,
    ceilings_of,
    directions_of,
    gauge_of,
    stability_of,
    tensors_of,
    units_of,
)
from planner.evidence.analysis import rounding_of
from planner.evidence.measured import Direction, SetName
from planner.inference import context_of, load_model, load_tokenizer, quiet, require_torch
from planner.plan import CheckpointRef
from planner.probes.accumulation import Accumulation
from planner.probes.device import chosen_device, chosen_dtype
from planner.probes.measuring import Machine, best_temperature
from planner.probes.reduction import SKETCH_COLUMNS, SKETCH_RANK, direction_of
from planner.probes.tasks import (
    Group,
    Source,
    load_questions,
    load_source,
    question_groups,
    text_groups,
)
from planner.probes.watching import watched_parameters
from planner.words import Unit, words_of

__all__ = ["ProbeRequest", "Probed", "probe"]

_WORDS = 8  # heads, and neurons, that are put into words

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many tokens."""


@dataclass(frozen=True)
class ProbeRequest:
    """What to measure."""

    text: Path
    """Neutral text, on which the model should stay as it is; also the goal where no other is named."""
    goal_text: Path | None = None
    """The text to become likelier."""
    against: Path | None = None
    """The text to become less likely: the loss is then the difference."""
    choices: Path | None = None
    """Questions with choices: the loss is then the cross-entropy of the right answers."""
    documents: int | None = 256
    """At most so many documents of each text; None for all."""
    groups: int = 256
    """At most so many groups are kept apart."""
    max_tokens: int | None = None
    """Documents are cut after so many tokens."""
    seed: int = 0
    """Of the shuffle, the sampled labels, the sketches."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What to run in."""
    rank: int = 2
    """Directions of a gradient that are kept."""
    batch_tokens: int = 4096
    """Tokens that go through the model at a time, padding included."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured together."""
        if self.choices and (self.goal_text or self.against):
            raise UsageError("--choices is a goal of its own", hint="leave out --goal-text and --against")
        if not 1 <= self.rank <= SKETCH_RANK:
            raise UsageError(f"--rank is from 1 to {SKETCH_RANK}", hint="2 is usual")


@dataclass(frozen=True, eq=False)
class Probed:
    """What came out: the record, and the arrays it belongs to."""

    evidence: EvidenceFile
    measured: Measured

    discard: Callable[[], None] = lambda: None
    """To be called when both are written: removes what was kept in the cache for going on."""

    def arrays(self) -> bytes:
        """The arrays as a safetensors file."""
        return arrays_bytes(self.measured)


@dataclass(frozen=True)
class _Work:
    goal: list[Group]
    drift: list[Group]
    texts: tuple[TextUsed, ...]
    same: bool
    """Whether the drift text is the goal text: then its scores are those of the goal."""


def probe(
    checkpoint: Checkpoint,
    fingerprint: str,
    request: ProbeRequest,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Probed:
    """Sensitivities of every tensor to the loss of the goal, raw and at the calibrated temperature, with curvature.

    One forward and up to five backward passes over the goal text (two losses, and scores at each temperature), one
    over the neutral text. Memory: the model, the activations of one batch, and one gradient at a time; the sums over
    rows and columns take 32 MiB for each of five sets, or what 16 groups take where that is more. With `cache`, a
    folder, what was measured is kept there from time to time, and an interrupted run goes on from there; the same
    request gives the same evidence.

    Raises `ExtraMissing`, `FileUnreadable`, `TextInvalid`, `CheckpointError` or `UsageError`.
    """
    require_torch("probing")
    tell = progress or (lambda _what, _done, _total: None)
    sources = _read(request)
    with quiet():
        tell("loading the model", 0, 0)
        device = chosen_device(request.device)
        dtype = chosen_dtype(request.dtype, checkpoint, device)
        model = load_model(checkpoint.path, dtype=dtype).to(device)
        work = _work(request, sources, load_tokenizer(checkpoint.path), context_of(model))
        _require_vocabulary(model, work)
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        mapped: ModelMap = map_of(checkpoint.config, shapes)
        parameters, skipped = watched_parameters(model, checkpoint, mapped)
        layout = Layout.of({name: checkpoint.tensors[name].shape for name in parameters})
        machine = Machine(model, parameters, layout, request.seed, device, request.batch_tokens)
        identity = _identity(fingerprint, request, work, str(device), str(dtype), layout)
        try:
            kept, measured, objective, sketches = _measured(machine, request, work, identity, cache, tell)
        finally:
            machine.reduction.close()
    sides = Sides.of(measured)
    ceilings, damping = ceilings_of(sides)
    ran_in = str(dtype).removeprefix("torch.")
    rounding = rounding_of(ran_in)
    tell("reading what units say", 0, 0)
    units = units_of(measured, mapped, rounding)
    evidence = EvidenceFile(
        id=identity,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        checkpoint=CheckpointRef(name=checkpoint.name, fingerprint=fingerprint),
        versions=_versions(),
        device=str(device),
        dtype=ran_in,
        seed=request.seed,
        max_tokens=request.max_tokens,
        groups=len(work.goal),
        texts=work.texts,
        objective=objective,
        stability=stability_of(sides),
        gauge=gauge_of(measured, rounding),
        ceilings=ceilings,
        tensors=tensors_of(measured, sides, directions_of(sketches), damping, rounding),
        units=units,
        words=words_of(checkpoint, mapped, _spoken(units)),
        not_measured=skipped,
        arrays=ArraysRef(file="evidence.safetensors", digest="blake3:" + "0" * 64),
    )
    return Probed(evidence, measured, kept.discard)


def _spoken(units: Sequence[UnitSensitivity]) -> list[Unit]:
    """The heads and neurons with the largest gains, as units of words."""
    kinds = [[unit for unit in units if unit.kind == kind][:_WORDS] for kind in ("head", "neuron")]
    return [Unit(unit.kind, unit.layer, unit.index, unit.expert) for found in kinds for unit in found]


def _read(request: ProbeRequest) -> dict[str, Source]:
    wanted = {"drift": request.text, "goal": request.goal_text or request.text, "against": request.against}
    if request.choices:
        wanted.pop("goal")
    read: dict[Path, Source] = {}
    for path in wanted.values():
        if path is not None and path not in read:
            read[path] = load_source(path)
    return {role: read[path] for role, path in wanted.items() if path is not None}


def _work(request: ProbeRequest, sources: Mapping[str, Source], tokenizer: Any, context: int | None) -> _Work:
    def groups(role: str, side: Literal[0, 1] = 0) -> list[Group]:
        return text_groups(
            sources[role].documents,
            tokenizer,
            context=context,
            max_tokens=request.max_tokens,
            most=request.documents,
            groups=request.groups,
            seed=request.seed,
            side=side,
        )

    texts = []
    drift = groups("drift")
    if request.choices:
        digest, questions = load_questions(request.choices)
        goal = question_groups(
            questions, tokenizer, context=context, most=request.documents, groups=request.groups, seed=request.seed
        )
        texts.append(_used("choices", str(request.choices), digest, goal))
    else:
        goal = groups("goal")
        texts.append(_used("goal", sources["goal"].name, sources["goal"].digest, goal))
    if "against" in sources:
        against = groups("against", 1)
        texts.append(_used("against", sources["against"].name, sources["against"].digest, against))
        goal = goal + against
    texts.append(_used("drift", sources["drift"].name, sources["drift"].digest, drift))
    same = request.against is None and "goal" in sources and sources["goal"].digest == sources["drift"].digest
    return _Work(goal, drift, tuple(texts), same)


def _used(role: Any, file: str, digest: str, groups: Sequence[Group]) -> TextUsed:
    return TextUsed(
        role=role,
        file=file,
        digest=digest,
        documents=sum(len(group.items) for group in groups),
        tokens=sum(group.tokens for group in groups),
    )


def _require_vocabulary(model: Any, work: _Work) -> None:
    known = int(model.get_input_embeddings().weight.shape[0])
    largest = max(max(ids) for group in (*work.goal, *work.drift) for item in group.items for ids in item.ids)
    if largest >= known:
        raise CheckpointError(
            f"a text has token {largest}, but the model has only {known} tokens",
            hint="the tokenizer files do not belong to this checkpoint",
        )


def _identity(fingerprint: str, request: ProbeRequest, work: _Work, device: str, dtype: str, layout: Layout) -> str:
    settings = [request.documents, request.groups, request.max_tokens, request.seed, request.batch_tokens, request.rank]
    said: list[object] = [
        fingerprint,
        device,
        dtype,
        *map(str, settings),
        *sorted(_versions().items()),
        list(layout.shapes),
    ]
    said += [(text.role, text.digest, text.documents, text.tokens) for text in work.texts]
    return f"blake3:{blake3(repr(said).encode()).hexdigest()}"


def _versions() -> dict[str, str]:
    return {"planner": __version__} | {name: version(name) for name in ("numpy", "torch", "transformers")}


def _measured(
    machine: Machine, request: ProbeRequest, work: _Work, identity: str, cache: Path | None, tell: Progress
) -> tuple[Accumulation, Measured, Objective, dict[str, list[Direction]]]:
    main = [group for group in work.goal if group.side == 0]
    steps = _Steps(tell, "finding the temperature", sum(group.tokens for group in main))
    inverse = best_temperature(machine, main, steps)
    goal = _grouping(work.goal, machine.layout)
    drift = _grouping(work.drift, machine.layout)
    losses: dict[SetName, float] = {"raw": 1.0, "calibrated": inverse, "fisher": inverse, "fisher_raw": 1.0}
    kept = Accumulation(machine, goal, drift, cache, identity)
    total = sum(g.tokens for g in work.goal) + (0 if work.same else sum(g.tokens for g in work.drift))
    steps = _Steps(tell, "measuring sensitivities", total)
    for number, group in enumerate(work.goal):
        if not kept.has("goal", number):
            factor = float(goal.signs[number] / goal.totals[number])
            rows = machine.measure(group, losses, number=number, half=int(goal.halves[number]), factor=factor)
            kept.add("goal", number, rows)
        steps(group.tokens)
    for number, group in enumerate(() if work.same else work.drift):
        if not kept.has("drift", number):
            kept.add("drift", number, machine.measure(group, {"fisher_drift": 1.0}, number=number, half=0, factor=0))
        steps(group.tokens)
    kept.keep()
    if work.same:
        kept.share("fisher_raw", "fisher_drift")
    objective = _objective(machine, request, work, inverse, kept)
    sketches = _directions(machine, kept)
    rank = request.rank
    directions = {
        name: Direction(whole.left[:, :rank], whole.strengths[:rank], whole.right[:rank])
        for name, (whole, *_) in sketches.items()
    }
    return kept, replace(kept.measured(), directions=directions), objective, sketches


def _grouping(groups: Sequence[Group], layout: Layout) -> Grouping:
    """Groups, and how they are merged for the arrays over units: at most 32 MiB, but at least 16 rows."""
    most = max(16, 2**23 // max(layout.units, 1))
    merged = np.zeros(len(groups), np.int64)
    side = np.array([group.side for group in groups], dtype=np.int64)
    begin = 0
    for which in (0, 1):
        members = np.flatnonzero(side == which)
        if len(members):
            rows = min(len(members), max(4, most * len(members) // len(groups)))
            merged[members] = begin + np.arange(len(members)) % rows
            begin += rows
    return Grouping(np.array([float(group.weight) for group in groups]), side, merged)


def _objective(machine: Machine, request: ProbeRequest, work: _Work, inverse: float, kept: Accumulation) -> Objective:
    accuracy = margin = None
    if request.choices:
        from planner.probes.questions import accuracy_and_margin

        accuracy, margin = accuracy_and_margin(machine, work.goal)
    kind: Literal["text", "contrast", "choice"] = "choice" if request.choices else "text"
    if request.against:
        kind = "contrast"
    return Objective(
        kind=kind,
        loss=kept.loss("raw"),
        calibrated_loss=kept.loss("calibrated"),
        temperature=1.0 / inverse,
        accuracy=accuracy,
        margin=margin,
    )


def _directions(machine: Machine, kept: Accumulation) -> dict[str, list[Direction]]:
    """All directions that the sketches hold, of all documents, then of each half."""
    found = {}
    randoms = machine.reduction.randoms()
    for name, (outer, inner) in kept.sketches().items():
        left, _ = randoms[name]
        sums = [(outer.sum(axis=0), inner.sum(axis=0))]
        if len(kept.goal.weights) > 1:
            sums += [(outer[half], inner[half]) for half in (0, 1)]
        found[name] = [Direction(*direction_of(y, z, left, rank=SKETCH_COLUMNS)) for y, z in sums]
    return found


class _Steps:
    """Counts tokens for the progress bar."""

    def __init__(self, tell: Progress, what: str, total: int) -> None:
        self._tell, self._what, self._total, self._done = tell, what, total, 0
        tell(what, 0, total)

    def __call__(self, tokens: int) -> None:
        self._done += tokens
        self._tell(self._what, self._done, self._total)
