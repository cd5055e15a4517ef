"""Scores of changes to one checkpoint, in memory: for searches and controls, which try many changes and write none.

The checkpoint is loaded once and its losses are measured once. A change puts other values into the loaded weights for
as long as it is measured. What it costs is one pass over the texts, with drift another two over the neutral text. The
numbers are those that `evaluate` finds for a checkpoint that stores these values, up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint import Checkpoint
from planner.errors import CheckpointError
from planner.evaluation.jobs import Job, drift_job, job_of, tokens_of
from planner.evaluation.pair import Pair, load_itself
from planner.evaluation.report import DriftResult
from planner.evaluation.statistics import Comparison, compare
from planner.evaluation.suite import Suite, suite_of
from planner.evaluation.text_loss import DriftCounts, Losses, Measurement, Weighted, measure_models
from planner.evaluation.verdicts import Calibration, calibrate, drift_result, nonfinite
from planner.inference import overlaid, parameters_by_tensor, quiet, require_torch

if TYPE_CHECKING:
    from torch.nn import Parameter

__all__ = ["Changes", "MetricScore", "Score", "Scorer", "Step", "stored_copies"]

Changes = Mapping[str, NDArray[Any]]
"""New values of whole tensors by name, each of its tensor's shape, already rounded to the dtype it is stored in
(`planner.edits.new_values`). Tensors that are not named keep theirs. May compute a tensor when it is asked for it."""
Step = Callable[[int], None]
_AGAIN_TOKENS = 1024


@dataclass(frozen=True)
class MetricScore:
    """One metric of a change, paired by document with the unchanged checkpoint; lower is better."""

    raw: Comparison | None
    """Of the losses as they are; None where the changed model's loss is not finite on some document."""
    calibrated: Calibration | None
    """Of the losses with each side at its own best logit temperature, cross-fitted on other documents; None likewise.
    `calibrated.comparison.difference` is what a search should lower: what a logit scale buys is not in it."""
    nonfinite_documents: int
    """Documents on which the changed model's loss is NaN or infinite."""


@dataclass(frozen=True)
class Score:
    """What a change does."""

    metrics: dict[str, MetricScore]
    """By the name of the metric, in the order of the suite."""
    drift: DriftResult | None
    """How far its predictions are from the unchanged checkpoint's; None where drift was not asked for."""


def stored_copies(parameters: Mapping[str, Parameter]) -> dict[str, tuple[str, ...]]:
    """Of tied tensors that are stored more than once: for each name, all names of the same parameter in order.

    `parameters` is what `parameters_by_tensor` found. Such tensors can only change together.
    """
    sharing: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        sharing.setdefault(id(parameter), []).append(name)
    return {name: tuple(names) for names in sharing.values() if len(names) > 1 for name in names}


class _Chosen(Mapping[str, NDArray[Any]]):
    """Some entries of changes, each still computed only when it is asked for."""

    def __init__(self, changes: Changes, names: Sequence[str]) -> None:
        self._changes, self._names = changes, names

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._changes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Scorer:
    """One loaded checkpoint with its losses on some texts, to score changes against."""

    spent: int
    """Changes scored so far. Measuring the unchanged checkpoint does not count."""
    tokens: int
    """Tokens that one score predicts, without drift: the unit of `step`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        on: Suite | Mapping[str, Sequence[str]],
        *,
        max_tokens: int | None = None,
        metrics: Collection[str] | None = None,
        seed: int = 0,
        pair: Pair | None = None,
        measured: Mapping[Job, Losses] | None = None,
        step: Step | None = None,
    ) -> None:
        """Load the checkpoint, in float32 on the CPU, and measure it.

        `on` is a suite, or documents by the name of a metric, each cut after `max_tokens` tokens; drift is then
        measured on the first metric's. `metrics` leaves out others than these. `seed` is that of the comparisons, as of
        `evaluate`. `pair` is given by who has loaded the checkpoint already, as its baseline, `measured` by who
        has its losses. `step` is told the tokens that are done while the checkpoint is measured.

        Raises `ExtraMissing` without torch or transformers, `SuiteInvalid` for texts that a suite could not have, and
        `CheckpointError` when the checkpoint cannot be loaded completely or its loss is not finite.
        """
        require_torch("scoring")
        suite = on if isinstance(on, Suite) else suite_of(on, max_tokens=max_tokens)
        self._suite = suite
        self._seed = seed
        self._metrics = [metric for metric in suite.metrics if metrics is None or metric.name in metrics]
        self._neutral = drift_job(suite)
        self.spent = 0
        with quiet(pair.baseline if pair else None):
            self._pair = pair or load_itself(checkpoint.path)
            shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
            self._parameters: dict[str, Parameter] = parameters_by_tensor(self._pair.baseline, shapes)
            jobs = dict.fromkeys(job_of(metric) for metric in self._metrics)
            self._ids = {job: tokens_of(self._pair, suite, job) for job in (*jobs, self._neutral)}
            self.tokens = sum(len(ids) - 1 for job in jobs for ids in self._ids[job])
            self._baseline = {
                job: measured[job] if measured and job in measured else self._alone(job, step=step) for job in jobs
            }
        for metric in self._metrics:
            losses = self._baseline[job_of(metric)]
            if broken := nonfinite(losses.nll, losses.curves.values):
                raise CheckpointError(
                    f"the checkpoint's loss is not finite on {broken} of {len(losses.nll)} documents of "
                    f"{metric.name!r}",
                    hint="there is nothing to compare with; check the checkpoint's weights",
                )

    @property
    def changeable(self) -> frozenset[str]:
        """The tensors that `score` can give other values: those that the loaded model has as they are stored."""
        return frozenset(self._parameters)

    def score(self, changes: Changes, *, drift: bool = True, step: Step | None = None) -> Score:
        """What the checkpoint would be with these values; adds 1 to `spent`. The loaded weights are as before after.

        With `drift`, also how far its predictions move on the neutral text of the suite. A change whose output is not
        finite has a score without numbers. `step` is told the tokens that are done.

        Raises `CheckpointError` for a tensor that is not in the loaded model as it is stored, and where only some
        copies of a tied tensor change: what a loader makes of that is seen only on a checkpoint that stores it.
        """
        self._require_possible(changes)
        found: dict[Job, Losses] = {}
        counts: DriftCounts | None = None
        with quiet(self._pair.baseline):
            if drift:
                losses, counts = self._beside(changes, step)
                found[self._neutral] = losses
            with self._with(changes):
                for job in self._baseline:
                    if job not in found:
                        found[job] = self._alone(job, step=step)
        self.spent += 1
        return Score(
            metrics={metric.name: self._compared(job_of(metric), found[job_of(metric)]) for metric in self._metrics},
            drift=drift_result(self._neutral.text, counts) if counts is not None else None,
        )

    def losses(self, metric: str) -> Losses:
        """The losses of the unchanged checkpoint on the documents of a metric."""
        return self._baseline[self._job(metric)]

    def measured_again(self, metric: str, *, step: Step | None = None) -> tuple[Losses, NDArray[np.float64]]:
        """The unchanged checkpoint once more, the documents in another order and in smaller batches.

        Returns its losses, in the order of the documents, and the predicted tokens of each, shape [n]. What is
        different from `losses` is the rounding of float32 and nothing else.
        """
        job = self._job(metric)
        ids = self._ids[job]
        with quiet(self._pair.baseline):
            # A third of the usual batch, and at least two: every document gets other neighbours, and other padding.
            total = sum(len(document) - 1 for document in ids)
            again = self._alone(
                job, order=range(len(ids) - 1, -1, -1), batch_tokens=max(1, min(1024, total // 3)), step=step
            )
        return again, np.array([len(document) - 1 for document in ids], dtype=np.float64)

    def _job(self, metric: str) -> Job:
        return next(job_of(found) for found in self._metrics if found.name == metric)

    def _with(self, changes: Changes) -> AbstractContextManager[None]:
        # Copies of a tied tensor are one parameter, and the same values would be put in twice.
        firsts = {id(self._parameters[name]): name for name in reversed(list(changes))}
        return overlaid(_Chosen(changes, tuple(firsts.values())), self._parameters)

    def _require_possible(self, changes: Changes) -> None:
        missing = [name for name in changes if name not in self._parameters]
        if missing:
            raise CheckpointError(
                f"{missing[0]} is not in the loaded model as it is stored, so its change cannot be scored in memory",
                hint="apply the plan to a new folder and evaluate that",
            )
        copies = stored_copies(self._parameters)
        for name in changes:
            others = [other for other in copies.get(name, ()) if other != name]
            if any(other not in changes or not np.array_equal(changes[other], changes[name]) for other in others):
                raise CheckpointError(
                    f"{name} and {others[0]} are two stored copies of one tied tensor, and the change leaves them "
                    "different",
                    hint="change both alike; or apply the plan to a new folder and evaluate that",
                )

    def _alone(
        self,
        job: Job,
        *,
        order: Sequence[int] | None = None,
        batch_tokens: int | None = None,
        step: Step | None = None,
    ) -> Losses:
        """The losses of the model as it is now."""
        ids = self._ids[job]
        places = range(len(ids)) if order is None else order
        (losses,), _ = measure_models(
            [Weighted(self._pair.baseline)],
            [ids[place] for place in places],
            vocabulary=self._pair.vocabulary,
            batch_tokens=batch_tokens,
            step=step,
        )
        return losses if order is None else losses.taken(np.argsort(order))

    def _beside(self, changes: Changes, step: Step | None) -> tuple[Losses, DriftCounts | None]:
        """The changed model on the neutral text, and its divergence from the unchanged one, block by block."""
        model = self._pair.baseline
        sides = [Weighted(model), Weighted(model, lambda: self._with(changes))]
        (_, losses), counts = measure_models(
            sides, self._ids[self._neutral], vocabulary=self._pair.vocabulary, drift=True, step=step
        )
        return losses, counts

    def _compared(self, job: Job, losses: Losses) -> MetricScore:
        broken = nonfinite(losses.nll, losses.curves.values)
        if broken:
            return MetricScore(raw=None, calibrated=None, nonfinite_documents=broken)
        tokens = np.array([len(ids) - 1 for ids in self._ids[job]], dtype=np.float64)
        found = Measurement(tokens=tokens, baseline=self._baseline[job], candidate=losses, drift=None)
        return MetricScore(
            raw=compare(losses.nll - found.baseline.nll, tokens, seed=self._seed),
            calibrated=calibrate(found, self._suite.documents(job.text), self._seed),
            nonfinite_documents=0,
        )
