"""Which tensors may get a vector of factors: measured, allowed by policy, and not without effect."""

from __future__ import annotations

import math

import numpy as np

from planner.analysts.base import Brief
from planner.architecture import ModelMap
from planner.checkpoint import Checkpoint
from planner.dtypes import float_dtype
from planner.evidence import Measured
from planner.plan import Policy
from planner.probes.factor_space import FactorSpace, FactorVector
from planner.probes.natural_steps import LARGEST_LOG
from planner.evidence.measured import Floats

__all__ = ["Limit", "candidate_space"]

_NOTHING = 1e-6
_MOST_FACTORS = 2**22


def candidate_space(checkpoint: Checkpoint, model: ModelMap, measured: Measured, policy: Policy) -> FactorSpace:
    """A factor for each output of every matrix (neuron, head channel, token) and each element of every vector.

    Left out are tensors that the policy protects, those whose factors the loss and the model's own predictions do not
    feel at all, and stored copies of a tied tensor, which get the factors of the one that was measured.
    """
    strongest = _strongest(measured)
    most = max(strongest.values(), default=0.0)
    copies = _copies(checkpoint, model)
    vectors = []
    for name in measured.layout.shapes:
        names = (name, *(other for other in copies.get(name, ()) if other != name))
        felt = strongest[name] > _NOTHING * most
        known = all(float_dtype(checkpoint.tensors[each].dtype) for each in names if each in checkpoint.tensors)
        if felt and known and not any(policy.protects(each) for each in names):
            vectors.append(FactorVector(name, _axis(name, model, measured), names[1:]))
    return FactorSpace(checkpoint, measured.layout, tuple(vectors))


def _strongest(measured: Measured) -> dict[str, float]:
    """By tensor, the largest derivative of any of its units, of the loss or of a score."""
    calibrated, fisher = (np.abs(measured.sets[name].units).max(axis=0) for name in ("calibrated", "fisher"))
    either = np.maximum(calibrated, fisher)
    return {
        name: float(max(either[place.rows].max(initial=0.0), either[place.columns].max(initial=0.0)))
        for name, place in measured.layout.places.items()
    }


def _axis(name: str, model: ModelMap, measured: Measured) -> str: ...


def _copies(checkpoint: Checkpoint, model: ModelMap) -> dict[str, tuple[str, ...]]:
    """Embedding and head where they are tied and both are stored."""
    pair = (model.embedding, model.head)
    if not model.tied or None in pair or any(name not in checkpoint.tensors for name in pair) or pair[0] == pair[1]:
        return {}
    names = tuple(name for name in pair if name)
    return {name: names for name in names}
