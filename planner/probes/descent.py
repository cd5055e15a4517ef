"""A walk downhill over the factors of many rows, measured anew at every point that it comes to.

The first point is the evidence itself. At every later one the model holds the factors of that point, and one forward
with two backward passes over the goal's text give slope and curvature there. What a factor does far from one is not
what it does near one, so that several such steps reach far beyond the best single one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from planner.evidence import Layout, Measured
from planner.evidence.measured import Floats, SetName
from planner.inference import overlaid
from planner.probes.factor_space import FactorSpace
from planner.probes.measuring import Machine
from planner.probes.natural_steps import DriftPenalty, Point, Step, leave_one_out, next_step
from planner.probes.tasks import Group

if TYPE_CHECKING:
    from torch.nn import Parameter

__all__ = ["Descent", "Waypoint", "evidence_point", "neutral_text"]

STEPS = 8
PILOT_STEPS = 3
SMALLEST_GAIN = 1e-3
"""Nats: a step that is predicted to bring less, on documents that did not choose it, is the last one not taken."""
_REMEMBERED = 3
_FEW_GROUPS, _DRAWS_OF_FEW = 100, 4
"""With few documents one draw of labels a document leaves the curvature too uncertain; more draws need no more text."""

Tell = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Waypoint:
    """A point of the walk."""

    at: Floats
    """[n]: the logs of all factors."""
    step: Step
    """The step that led to it, with what it was predicted to gain."""


def evidence_point(measured: Measured, space: FactorSpace) -> Point:
    """What the evidence says of the model as it is, over the factors of a space."""
    grouping = measured.goal

    def rows(name: SetName) -> Floats:
        scores = measured.sets[name]
        temperature = grouping.merge(scores.tensors[:, -1:])
        return np.concatenate([scores.units[:, space.units].astype(np.float64), temperature], axis=1)

    return Point(rows("calibrated"), rows("fisher")[None])


def neutral_text(measured: Measured, space: FactorSpace, weight: float) -> DriftPenalty:
    """The drift text of the evidence as a penalty of that weight on leaving the model as it is."""
    scores = measured.sets["fisher_drift"].units[:, space.units].astype(np.float64)
    return DriftPenalty(weight, measured.drift.coarse, scores)


@dataclass(frozen=True, eq=False)
class Descent:
    """The walk of one model."""

    model: Any
    """In float32, on the CPU."""
    parameters: Mapping[str, Parameter]
    """By the tensor's name: where its values go."""
    groups: Sequence[Group]
    """Of the goal's text, those that the evidence was measured on."""
    measured: Measured
    inverse_temperature: float
    """The best one of the model as it is."""
    drift_weight: float
    limit: Callable[[FactorSpace, Floats], Floats]
    """Brings a point back to where it is allowed."""
    seed: int = 0
    """Of the labels that are drawn."""

    @property
    def draws(self) -> int:
        """Labels that are drawn from the model for each document."""
        return _DRAWS_OF_FEW if len(self.groups) < _FEW_GROUPS else 1

    @property
    def tokens(self) -> int:
        """Tokens of one measurement."""
        return sum(group.tokens for group in self.groups)

    def walk(self, space: FactorSpace, *, steps: int = STEPS, tell: Tell) -> Generator[Waypoint, None, None]:
        """Points downhill, until nothing more is to be gained. `tell` is told the tokens that are done."""
        for waypoint, _ in self._walk(space, steps, tell):
            yield waypoint

    def shortlist(self, space: FactorSpace, count: int, *, tell: Tell) -> FactorSpace:
        """The `count` vectors that matter most: those which a short walk of all would miss most at its end.

        What a vector is worth depends on what the others do, so choosing by each one's own gain picks many that do the
        same; here each is judged with all others in place.
        """
        if len(space.vectors) <= count:
            return space
        at, inverse_temperature = np.zeros(space.size), self.inverse_temperature
        for waypoint, inverse_temperature in self._walk(space, PILOT_STEPS, tell):  # noqa: B007
            at = waypoint.at
        with self._machine(space) as machine:
            point = self._measured(machine, space, at, inverse_temperature, PILOT_STEPS, tell)
        missed = leave_one_out(point, self.measured.goal.coarse, at, list(space.slices.values()))
        order = np.argsort(-missed, kind="stable")[:count]
        return space.only([space.vectors[place].tensor for place in order])

    def _walk(self, space: FactorSpace, steps: int, tell: Tell) -> Iterator[tuple[Waypoint, float]]:
        """The points, each with the best inverse temperature there."""
        goal = self.measured.goal.coarse
        penalty = neutral_text(self.measured, space, self.drift_weight) if self.drift_weight else None
        inverse_temperature = self.inverse_temperature
        at = np.zeros(space.size)
        points: list[Point] = []
        with self._machine(space) as machine:
            for number in range(steps):
                if number:
                    point = self._measured(machine, space, at, inverse_temperature, number, tell)
                else:
                    point = self._first(machine, space, tell)
                points = [*points, point][-_REMEMBERED:]
                step = next_step(points, goal, penalty, at)
                if step is None or step.gain < SMALLEST_GAIN:
                    return
                at = self.limit(space, at + step.move)
                inverse_temperature *= float(np.exp(step.temperature))
                yield Waypoint(at, step), inverse_temperature

    @contextmanager
    def _machine(self, space: FactorSpace) -> Iterator[Machine]:
        """Watches the tensors of the space and no others."""
        layout = Layout({vector.tensor: space.layout.shapes[vector.tensor] for vector in space.vectors})
        watched = {name: self.parameters[name] for name in layout.shapes}
        device = next(iter(watched.values())).device
        machine = Machine(self.model, watched, layout, self.seed, device)
        try:
            yield machine
        finally:
            machine.reduction.close()

    def _first(self, machine: Machine, space: FactorSpace, tell: Tell) -> Point:
        """The evidence, with more draws where there are few documents."""
        point = evidence_point(self.measured, space)
        if self.draws == 1:
            return point
        here = np.zeros(space.size)
        more = self._measured(machine, space, here, self.inverse_temperature, 0, tell, draws=self.draws - 1)
        return Point(point.gradient, np.concatenate([point.scores, more.scores]))

    def _measured(
        self,
        machine: Machine,
        space: FactorSpace,
        at: Floats,
        inverse_temperature: float,
        number: int,
        tell: Tell,
        *,
        draws: int | None = None,
    ) -> Point:
        """Slope and scores at a point. Labels are drawn anew at each `number`."""
        grouping = self.measured.goal
        names = [cast(SetName, f"fisher.{number}.{draw}") for draw in range(draws or self.draws)]
        # Not "calibrated", of which sketches would be taken. Sets whose names begin with "fisher" draw labels.
        losses: dict[SetName, float] = dict.fromkeys(("raw", *names), inverse_temperature)
        units = FactorSpace(space.checkpoint, machine.layout, space.vectors).units
        rows = {name: np.zeros((len(grouping.coarse.weights), space.size + 1)) for name in losses}
        with overlaid(space.values(at), self.parameters):
            for place, group in enumerate(self.groups):
                found = machine.measure(group, losses, number=place, half=0, factor=0.0)
                for name, row in rows.items():
                    row[grouping.merged[place], :-1] += found.units[name][units]
                    row[grouping.merged[place], -1] += found.temperature[name]
                tell(group.tokens)
        return Point(rows["raw"], np.array([rows[name] for name in names]))
