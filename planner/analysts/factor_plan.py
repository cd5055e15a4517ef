"""From a point in the space of factors to the modifications of a plan, their numbers in words, and their file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from blake3 import blake3

from planner.analysts.row_words import row_words
from planner.analysts.tuning import Tuned
from planner.architecture import ModelMap
from planner.evaluation import Suite
from planner.evidence import EvidenceFile, Measured, TensorSensitivity
from planner.evidence.facts import PREFIX, facts_of
from planner.evidence.measured import Floats
from planner.evidence.prediction import Move, PredictedModification, Prediction, predict
from planner.operations import Factors, Scale
from planner.plan import Evidence, Modification, Target
from planner.probes.factor_space import FactorSpace, FactorVector
from planner.probes.natural_steps import Step

__all__ = ["FactorPlan", "Found"]

_LARGEST_ROWS = 3
_LONGEST_REASON = 2048


@dataclass(frozen=True, eq=False)
class Found:
    """A point, and how it was found."""

    space: FactorSpace
    at: Floats
    """[n]: the logs of all factors."""
    step: Step
    """The first step over this space, which tells how many parts of the documents agree on what."""
    drift_weight: float
    tuned: Tuned | None = None
    """What the tuning measured; None for one step from the evidence."""
    suite: Suite | None = None
    shared: int = 0
    """Documents of the tuning text that the evidence was measured on, too."""


@dataclass(frozen=True, eq=False)
class FactorPlan:
    """The modifications that bring a checkpoint to a point: one a tensor, a vector of factors each."""

    found: Found
    evidence: EvidenceFile
    measured: Measured
    model: ModelMap

    @cached_property
    def vectors(self) -> tuple[FactorVector, ...]:
        """Those of which some stored value changes; the others would be void."""
        changed = set(self.found.space.changed(self.found.at))
        return tuple(vector for vector in self.found.space.vectors if vector.tensor in changed)

    @cached_property
    def prediction(self) -> Prediction:
        """What the evidence predicts of all of them and of each alone, by the tensor's name."""
        moves = {}
        for vector in self.vectors:
            logs = self.found.at[self.found.space.slices[vector.tensor]]
            rows = vector.axis == "rows"
            moves[vector.tensor] = [Move(vector.tensor, rows=logs if rows else 0.0, columns=0.0 if rows else logs)]
        return predict(self.evidence, self.measured, moves, {})

    def arrays(self, metadata: Mapping[str, str]) -> bytes:
        """The factors as a safetensors file, float32, under the names of the tensors."""
        from safetensors.numpy import save as safetensors_bytes

        space, at = self.found.space, self.found.at
        vectors = {vector.tensor: space.factors(vector.tensor, at) for vector in self.vectors}
        # One entry: safetensors writes several in any order, and the same plan should have the same digest.
        return safetensors_bytes(vectors, metadata={"made": json.dumps(dict(metadata), ensure_ascii=False)})

    def modifications(self, file: str, arrays: bytes) -> tuple[Modification, ...]:
        """One for each tensor; `arrays` is the content of `file`, which is to lie beside the plan."""
        digest = f"blake3:{blake3(arrays).hexdigest()}"
        alone = {change.id: change for change in self.prediction.modifications}
        return tuple(
            Modification(
                id=f"m{number:02d}",
                target=Target(tensors=vector.names),
                operation=Scale(factor=Factors(file=file, array=vector.tensor, axis=vector.axis, digest=digest)),
                reasoning=self._reasoning(vector)[:_LONGEST_REASON],
                confidence=self._confidence(vector),
                expected_impact=self._impact(alone[vector.tensor]),
                evidence=self._cited(vector),
            )
            for number, vector in enumerate(self.vectors, start=1)
        )

    def _logs(self, vector: FactorVector) -> Floats:
        logs: Floats = self.found.at[self.found.space.slices[vector.tensor]]
        return logs

    def _largest(self, vector: FactorVector) -> list[int]:
        order = np.argsort(-np.abs(self._logs(vector)), kind="stable")[:_LARGEST_ROWS]
        return [int(place) for place in order]

    @cached_property
    def _words(self) -> dict[tuple[str, int], str]:
        rows = {vector.tensor: (vector.axis, self._largest(vector)) for vector in self.vectors}
        return row_words(self.found.space.checkpoint, self.model, rows)

    def _sensitivity(self, vector: FactorVector) -> TensorSensitivity:
        return next(tensor for tensor in self.evidence.tensors if tensor.name == vector.tensor)

    def _reasoning(self, vector: FactorVector) -> str:
        sensitivity, logs = self._sensitivity(vector), self._logs(vector)
        scale = sensitivity.scale
        error = "" if scale.calibrated_se is None else f" (standard error {scale.calibrated_se:.1g})"
        many = sensitivity.rows if vector.axis == "rows" else sensitivity.columns
        each = ("row" if vector.axis == "rows" else "column") if sensitivity.rows > 1 else "element"
        gain = sensitivity.by_row if vector.axis == "rows" else sensitivity.by_column
        agreeing, parts = self._agreement(vector)
        change = self.found.space.relative_changes(self.found.at)[vector.tensor]
        largest = "; ".join(self._row(vector, place) for place in self._largest(vector))
        return (
            f"One factor for all of it changes the calibrated loss by {scale.calibrated:+.3g} nats per unit of its "
            f"log{error}; a factor for each {each} is worth {gain:.2g} nats by itself, judged on documents that did "
            f"not choose it. The {many} factors come from natural-gradient steps over all tensors of this plan "
            f"together; {agreeing} of {parts} parts of the documents agree that those of this tensor help. They lie "
            f"between {np.exp(logs.min()):.3f} and {np.exp(logs.max()):.3f} (rms {np.sqrt(np.mean(logs**2)):.3f} in "
            f"logs) and change the tensor by {change:.1%} of its norm. Largest {each}s: {largest}."
        )

    def _row(self, vector: FactorVector, place: int) -> str:
        word = self._words.get((vector.tensor, place))
        return f"{place} times {np.exp(self._logs(vector)[place]):.3f}" + (f" ({word})" if word else "")

    def _impact(self, alone: PredictedModification) -> str:
        calibrated = alone.calibrated
        error = "" if calibrated.se is None else f" ± {calibrated.se:.1g}"
        return (
            f"By itself: {calibrated.difference:+.4f}{error} nats of calibrated loss and {alone.drift:.2g} nats of "
            f"drift, as the evidence predicts. All {len(self.vectors)} together: see the plan's note."
        )

    def _agreement(self, vector: FactorVector) -> tuple[int, int]:
        """Parts of the documents that say that the first step's factors of this tensor help, and how many there are."""
        slopes = self.found.step.by_part[:, self.found.space.slices[vector.tensor]].sum(axis=1)
        return int((slopes > 0).sum()), len(slopes)

    def _confidence(self, vector: FactorVector) -> float:
        """Laplace's rule of succession on the parts that agree: never 0 or 1."""
        agreeing, parts = self._agreement(vector)
        return round((agreeing + 1) / (parts + 2), 2)

    def _cited(self, vector: FactorVector) -> tuple[Evidence, ...]:
        facts = facts_of(self._sensitivity(vector))
        unit = "row" if vector.axis == "rows" else "column"
        wanted = ["scale.calibrated", "scale.calibrated_se", f"by_{unit}"]
        wanted += [f"{unit}.{place}" for place in self._largest(vector)]
        names = [PREFIX + name for name in wanted]
        return tuple(Evidence(tensor=vector.tensor, fact=name, value=facts[name]) for name in names if name in facts)
