"""Steps over the factors: against quadratics whose answer is known, and against the true loss of a real model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import TINY, documents, measure, study_of

from planner.analysts.candidates import candidate_space
from planner.analysts.goal_text import goal_groups
from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.edits import stored_values
from planner.evidence import Grouping
from planner.inference import context_of, load_model, load_tokenizer, overlaid, parameters_by_tensor, quiet
from planner.plan import Policy
from planner.probes.descent import Descent, evidence_point
from planner.probes.factor_space import FactorSpace, FactorVector
from planner.probes.measuring import Machine, loss_at
from planner.probes.natural_steps import DriftPenalty, Point, leave_one_out, next_step


def a_quadratic(groups: int, size: int, *, seed: int = 0, noise: float = 0.0, pull: float = 1.0):
    """Documents that share one quadratic: slope g and curvature from random scores; the last column is temperature."""
    random = np.random.default_rng(seed)
    weights = random.integers(50, 150, groups).astype(float)
    grouping = Grouping(weights, np.zeros(groups, np.int64), np.arange(groups))
    scores = random.normal(size=(groups, size + 1)) * np.sqrt(weights)[:, None]
    slope = pull * random.normal(size=size + 1)
    gradient = weights[:, None] * slope + noise * np.sqrt(weights)[:, None] * random.normal(size=(groups, size + 1))
    return Point(gradient, scores[None]), grouping, slope


def test_a_step_lowers_the_loss_that_all_documents_share():
    point, grouping, slope = a_quadratic(400, 6, pull=0.1)
    step = next_step([point], grouping, None, np.zeros(6))
    # The same, solved plainly: the inverse of the Fisher information with the temperature in it, its damping on the
    # factors alone.
    total = grouping.weights.sum()
    fisher = point.scores[0].T @ point.scores[0] / total
    projected = fisher[:6, :6] - np.outer(fisher[:6, 6], fisher[6, :6]) / fisher[6, 6]
    damping = np.diag(projected) + np.diag(projected).mean()
    gradient = point.gradient.sum(axis=0) / total
    direction = -np.linalg.solve(
        projected + np.diag(damping), gradient[:6] - fisher[:6, 6] / fisher[6, 6] * gradient[6]
    )
    assert step.move == pytest.approx(step.length * direction, rel=1e-9)
    # Then the temperature is where its own slope vanishes.
    assert gradient[6] + fisher[6, :6] @ step.move + fisher[6, 6] * step.temperature == pytest.approx(0, abs=1e-9)
    assert step.length == pytest.approx(3, rel=0.15)  # near the best one: the Fisher information is about the identity
    assert step.gain == pytest.approx(0.5 * float(slope[:6] @ slope[:6]), rel=0.2)
    assert (step.by_part.sum(axis=1) > 0).all()


def test_documents_that_contradict_each_other_make_no_step():
    refused = 0
    for seed in range(20):
        point, grouping, _ = a_quadratic(20, 300, seed=seed, noise=1.0, pull=0.0)
        step = next_step([point], grouping, None, np.zeros(300))
        refused += step is None or step.gain < 1e-3
    assert refused >= 15  # in sample, every one of them would be "a gain" of about 0.5 nats


def test_what_a_temperature_would_do_as_well_is_no_step():
    point, grouping, _ = a_quadratic(60, 8, pull=0.0)
    random = np.random.default_rng(5)
    along = random.normal(size=8)
    level = np.sqrt(grouping.weights) * random.normal(size=60)
    scores = np.column_stack([np.outer(level, along), level])
    gradient = np.column_stack([np.outer(grouping.weights, along), grouping.weights])
    assert next_step([Point(gradient, scores[None])], grouping, None, np.zeros(8)) is None
    free = Point(np.column_stack([gradient[:, :-1], np.zeros(60)]), point.scores)
    assert next_step([free], grouping, None, np.zeros(8)) is not None  # the same slope, not explained by temperature


def test_one_group_of_documents_is_too_few():
    point, grouping, _ = a_quadratic(1, 3)
    assert next_step([point], grouping, None, np.zeros(3)) is None


def test_a_penalty_makes_steps_shorter_where_the_neutral_text_feels_them():
    point, grouping, _ = a_quadratic(200, 5, pull=0.2)
    random = np.random.default_rng(1)
    felt = np.zeros((200, 5))
    felt[:, :2] = random.normal(size=(200, 2)) * np.sqrt(grouping.weights)[:, None]
    free = next_step([point], grouping, None, np.zeros(5)).move
    held = next_step([point], grouping, DriftPenalty(100.0, grouping, felt), np.zeros(5)).move
    assert np.abs(held[:2]).sum() < 0.1 * np.abs(free[:2]).sum()
    assert np.abs(held[2:]).sum() > 0.2 * np.abs(free[2:]).sum()
    # Away from the original the penalty pulls back, whatever the goal says.
    still = Point(np.zeros_like(point.gradient), point.scores)
    at = np.array([0.3, -0.2, 0.0, 0.0, 0.0])
    back = next_step([still], grouping, DriftPenalty(20.0, grouping, felt), at).move
    assert back[0] < -0.1
    assert back[1] > 0.05


def test_leaving_a_tensor_out_costs_what_the_quadratic_says():
    point, grouping, _ = a_quadratic(50, 7, pull=0.3)
    total, random = grouping.weights.sum(), np.random.default_rng(2)
    at = random.normal(size=7) * 0.3
    level = point.scores[0][:, -1]
    along = level @ point.scores[0][:, :-1] / (level @ level)
    scores = (point.scores[0][:, :-1] - np.outer(level, along)) / np.sqrt(total)
    slope = point.gradient.sum(axis=0) / total
    slope = slope[:-1] - slope[-1] * along

    def loss(move):
        return float(slope @ move + 0.5 * np.square(scores @ move).sum())

    found = leave_one_out(point, grouping, at, [slice(0, 3), slice(3, 4), slice(4, 7)])
    for cost, part in zip(found, (slice(0, 3), slice(3, 4), slice(4, 7)), strict=True):
        back = np.zeros(7)
        back[part] = -at[part]
        assert cost == pytest.approx(loss(back), rel=1e-9)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six short documents of the bundled model."""
    folder = tmp_path_factory.mktemp("evidence")
    goal, neutral = documents("inventory.calibration", 0, 6), documents("stories.calibration", 0, 4)
    return study_of(measure(folder, TINY, goal, neutral, max_tokens=24))


def space_of(study, policy=None):
    mapped = map_of(study.checkpoint.config, {n: t.shape for n, t in study.checkpoint.tensors.items()})
    return candidate_space(study.checkpoint, mapped, study.measured, policy or Policy())


def walker(study, model, *, b: float) -> Descent:
    """A walk that nothing limits."""
    shapes = {name: tensor.shape for name, tensor in study.checkpoint.tensors.items()}
    groups = goal_groups(study.evidence, study.measured, study.path, load_tokenizer(TINY), context_of(model))
    return Descent(model, parameters_by_tensor(model, shapes), groups, study.measured, b, 0.0, lambda _space, at: at)


def test_slopes_at_a_moved_point_are_those_of_the_true_loss(study):
    space = space_of(study)
    kept = space.only([v.tensor for v in space.vectors if "layers.1" in v.tensor or "embed" in v.tensor])
    with quiet():
        torch.set_num_threads(1)
        descent = walker(study, load_model(TINY), b=1.1)
        model, parameters, groups = descent.model, descent.parameters, descent.groups
        random = np.random.default_rng(0)
        at = random.normal(size=kept.size) * 0.05
        b = 1.3
        with descent._machine(kept) as machine:
            point = descent._measured(machine, kept, at, b, 1, lambda _tokens: None)
        total = study.measured.goal.weights.sum()
        slope = point.gradient.sum(axis=0) / total
        watched = {name: parameters[name] for name in study.measured.layout.shapes}
        other = Machine(model, watched, study.measured.layout, 0, torch.device("cpu"))
        exact = {name: stored_values(study.checkpoint, name) for name in kept.slices}

        def loss(move, inverse=b):
            factors = np.exp(move)
            values = {}
            for vector in kept.vectors:
                mine = factors[kept.slices[vector.tensor]]
                values[vector.tensor] = exact[vector.tensor] * (mine[:, None] if vector.axis == "rows" else mine)
            with overlaid(values, parameters):
                return float(loss_at(other, groups, [inverse], lambda _tokens: None)[0])

        # Along random directions within single tensors, and by temperature. The weights are bfloat16: the measured
        # point is rounded and this oracle is not, which is part of the tolerance.
        for part in kept.slices.values():
            along = np.zeros(kept.size)
            along[part] = random.normal(size=part.stop - part.start)
            along *= 0.02 / np.abs(along).max()
            true = (loss(at + along) - loss(at - along)) / 2
            assert float(slope[:-1] @ along) == pytest.approx(true, rel=0.1, abs=3e-5)
        true = (loss(at, b * np.exp(0.02)) - loss(at, b * np.exp(-0.02))) / 0.04
        assert slope[-1] == pytest.approx(true, rel=0.02)


def test_a_walk_stops_and_a_shortlist_holds_what_it_would_miss(study):
    told = []
    with quiet():
        torch.set_num_threads(1)
        descent = walker(study, load_model(TINY), b=1 / study.evidence.objective.temperature)
        everything = space_of(study)
        space = descent.shortlist(everything, 4, tell=told.append)
        assert len(space.vectors) == 4
        assert descent.shortlist(space, 4, tell=told.append) is space
        points = list(descent.walk(space, steps=3, tell=told.append))
    assert all(point.step.gain >= 1e-3 for point in points)
    assert len(points) <= 3
    assert sum(told) % descent.tokens == 0
    assert not any(parameter._post_accumulate_grad_hooks for parameter in descent.parameters.values())


def test_the_first_point_is_the_evidence(study):
    space = space_of(study)
    point = evidence_point(study.measured, space)
    place = study.measured.layout.places["model.layers.1.mlp.down_proj.weight"]
    part = space.slices["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(point.gradient[:, part], study.measured.sets["calibrated"].units[:, place.rows])
    assert point.scores.shape == (1, len(study.measured.goal.coarse.weights), space.size + 1)


def a_space() -> FactorSpace:
    checkpoint = open_checkpoint(TINY)
    from planner.evidence import Layout

    layout = Layout.of({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    names = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.layers.3.self_attn.o_proj.weight")
    vectors = [FactorVector(name, "rows" if layout.shapes[name][0] > 1 else "columns") for name in names]
    return FactorSpace(checkpoint, layout, tuple(vectors))


SPACE = a_space()
NORM = float(
    np.sqrt(
        sum(np.square(stored_values(SPACE.checkpoint, n), dtype=np.float64).sum() for n in SPACE.checkpoint.tensors)
    )
)


@settings(max_examples=60, deadline=None)
@given(
    spread=st.floats(0.01, 1.0),
    each=st.floats(0.01, 0.6),
    total=st.floats(0.005, 0.2),
    seed=st.integers(0, 1000),
)
def test_a_point_is_brought_back_to_the_limits_and_no_further(spread, each, total, seed):
    at = np.random.default_rng(seed).normal(size=SPACE.size) * spread
    found = SPACE.within(at, each=each, total=total, norm=NORM)
    changes, moved = {}, 0.0
    for vector in SPACE.vectors:
        stored = stored_values(SPACE.checkpoint, vector.tensor).astype(np.float64)
        new = SPACE.values(found)[vector.tensor].astype(np.float64)
        changes[vector.tensor] = np.linalg.norm(new - stored) / np.linalg.norm(stored)
        moved += np.square(new - stored).sum()
        part = SPACE.slices[vector.tensor]
        ratio = found[part] / at[part]
        assert np.allclose(ratio, ratio[0])
        assert 0 <= ratio[0] <= 1
    assert max(changes.values()) <= each
    assert np.sqrt(moved) / NORM <= total
    if (found != at).any():  # then some limit is nearly reached, but for what is left for rounding
        assert max(changes.values()) > 0.7 * each or np.sqrt(moved) / NORM > 0.7 * total


def test_candidates_are_what_the_policy_allows_and_the_loss_feels(study):
    everything = space_of(study)
    assert len(everything.vectors) == len(study.measured.layout.shapes)
    assert {v.axis for v in everything.vectors if "norm" in v.tensor} == {"columns"}
    protected = space_of(study, Policy(protected=("*.mlp.*", "model.norm.weight")))
    assert not any(".mlp." in v.tensor or v.tensor == "model.norm.weight" for v in protected.vectors)
    place = study.measured.layout.places["model.layers.0.mlp.up_proj.weight"]
    for scores in study.measured.sets.values():  # a tensor that nothing feels, as before a norm that cancels it
        scores.units[:, place.rows] = 0
        scores.units[:, place.columns] = 0
    assert "model.layers.0.mlp.up_proj.weight" not in {v.tensor for v in space_of(study).vectors}
