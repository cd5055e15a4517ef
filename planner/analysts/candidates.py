"""Which tensors may get a vector of factors: measured, allowed by policy, and not without effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from planner.architecture import ModelMap
from planner.checkpoint import Checkpoint
from planner.dtypes import float_dtype
from planner.evidence import Measured
from planner.evidence.measured import Floats
from planner.plan import Policy
from planner.probes.factor_space import FactorSpace, FactorVector
from planner.probes.natural_steps import LARGEST_LOG
from planner.profile import Profile

__all__ = ["candidate_space", "limit_by"]

_NOTHING = 1e-6


def candidate_space(checkpoint: Checkpoint, model: ModelMap, measured: Measured, policy: Policy) -> FactorSpace:
    """A factor for each output of every matrix (neuron, head's channel, token) and each element of every vector.

    Left out are tensors that the policy protects, those whose factors neither the loss nor the model's own predictions
    feel, and stored copies of a tied tensor, which take the factors of the one that was measured.
    """
    strongest = _strongest(measured)
    most = max(strongest.values(), default=0.0)
    copies = _copies(checkpoint, model)
    vectors = []
    for name in measured.layout.shapes:
        names = (name, *(other for other in copies if other != name and name in copies))
        known = all(float_dtype(checkpoint.tensors[each].dtype) for each in names)
        if known and strongest[name] > _NOTHING * most and not any(policy.protects(each) for each in names):
            vectors.append(FactorVector(name, _axis(name, model, measured), names[1:]))
    return FactorSpace(checkpoint, measured.layout, tuple(vectors))


def limit_by(policy: Policy, profile: Profile) -> Callable[[FactorSpace, Floats], Floats]:
    """What brings a point back into the policy's limits on relative changes, and every factor between 1/3 and 3."""
    norm = math.hypot(*(tensor.l2_norm for tensor in profile.tensors if tensor.l2_norm is not None))

    def limit(space: FactorSpace, at: Floats) -> Floats:
        return space.within(
            np.clip(at, -LARGEST_LOG, LARGEST_LOG),
            each=policy.largest_relative_change,
            total=policy.largest_total_change,
            norm=norm,
        )

    return limit


def _strongest(measured: Measured) -> dict[str, float]:
    """By tensor, the largest derivative of any of its units, of the loss or of a score."""
    calibrated, fisher = (np.abs(measured.sets[name].units).max(axis=0) for name in ("calibrated", "fisher"))
    either = np.maximum(calibrated, fisher)
    return {
        name: float(max(either[place.rows].max(initial=0.0), either[place.columns].max(initial=0.0)))
        for name, place in measured.layout.places.items()
    }


def _axis(name: str, model: ModelMap, measured: Measured) -> Literal["rows", "columns"]:
    """The outputs of a linear map; of a vector, its elements."""
    parameter = model.parameters.get(name)
    outputs_across = parameter is not None and parameter.transposed
    return "columns" if measured.layout.shapes[name][0] == 1 or outputs_across else "rows"


def _copies(checkpoint: Checkpoint, model: ModelMap) -> tuple[str, ...]:
    """Embedding and head where they are tied and both are stored."""
    pair = {name for name in (model.embedding, model.head) if name in checkpoint.tensors and name}
    return tuple(sorted(pair)) if model.tied and len(pair) > 1 else ()
