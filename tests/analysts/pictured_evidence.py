"""Evidence for checkpoints made of profiles alone: derivatives drawn at random, and what follows from them worked out.

Roles that are one edit in a real model are one here as well: `q_norm` and `k_norm`, `v_proj` and `o_proj`, `up_proj`
and `down_proj`; `q_proj` and `k_proj` do nothing in front of their norms.
"""

from __future__ import annotations

import numpy as np

from planner.architecture import ModelMap
from planner.effects import Known
from planner.evidence import (
    ArraysRef,
    EvidenceFile,
    Grouping,
    Layout,
    Measured,
    Objective,
    Scores,
    Sides,
    TextUsed,
    ceilings_of,
    gauge_of,
    stability_of,
    tensors_of,
    units_of,
)
from planner.evidence.measured import SETS
from planner.plan import CheckpointRef
from planner.profile import Profile
from planner.words import TokenWeight, UnitWords

__all__ = ["made_evidence"]

_GROUPS = 16
_TWINS = {"k_norm": "q_norm", "o_proj": "v_proj", "down_proj": "up_proj"}
_NOTHING = ("q_proj", "k_proj")
_DIGEST = "blake3:" + "0" * 64


def made_evidence(
    profile: Profile, model: ModelMap, *, row: tuple[str, int] | None = None, slopes: tuple[float, float] = (-4.0, -4.0)
) -> Known:
    """Evidence of every tensor but a tied head; `row` has large slopes, one in each half of the documents."""
    rng = np.random.default_rng(0)
    found = {t.name: t for t in profile.tensors if t.name != "lm_head.weight"}
    layout = Layout.of({name: t.shape for name, t in found.items()})
    groups = Grouping(np.full(_GROUPS, 40.0), np.zeros(_GROUPS, np.int64), np.arange(_GROUPS))
    sets = {}
    for name in SETS:
        tensors = rng.normal(0, 0.05, (_GROUPS, 2 * layout.tensors + 1))
        for number, tensor in enumerate(found.values()):
            if tensor.role in _NOTHING:
                tensors[:, number] *= 1e-9
            elif tensor.role in _TWINS:
                twin = tensor.name.replace(tensor.role, _TWINS[tensor.role])
                tensors[:, number] = tensors[:, list(found).index(twin)]
        units = rng.normal(0, 0.01, (_GROUPS, layout.units)).astype(np.float32)
        if row:
            mean = np.resize(slopes, _GROUPS) if name == "calibrated" else 0.0
            units[:, layout.places[row[0]].rows.start + row[1]] = mean + rng.normal(0, 1.0, _GROUPS)
        sets[name] = Scores(tensors, units)
    measured = Measured(layout, groups, groups, sets)
    sides = Sides.of(measured)
    ceilings, damping = ceilings_of(sides)
    units = units_of(measured, model)
    words = tuple(
        UnitWords(
            kind=unit.kind,
            layer=unit.layer,
            index=unit.index,
            expert=unit.expert,
            **{
                field: tuple(TokenWeight(id=n, text=f" word{n}", value=1.0) for n in rng.integers(0, 256, 3).tolist())
                for field in ("promotes", "suppresses", "reads_most")
            },
        )
        for unit in units
    )
    evidence = EvidenceFile(
        id=_DIGEST,
        created="2026-01-01T00:00:00Z",
        checkpoint=CheckpointRef(name=profile.name, fingerprint=profile.fingerprint),
        versions={},
        device="cpu",
        dtype="float32",
        seed=0,
        max_tokens=None,
        groups=_GROUPS,
        texts=(TextUsed(role="goal", file="goal.json", digest=_DIGEST, documents=16, tokens=640),),
        objective=Objective(kind="text", loss=2.5, calibrated_loss=2.4, temperature=0.9),
        stability=stability_of(sides),
        gauge=gauge_of(measured),
        ceilings=ceilings,
        tensors=tensors_of(measured, sides, {}, damping),
        units=units,
        words=words,
        not_measured={},
        arrays=ArraysRef(file="evidence.safetensors", digest=_DIGEST),
    )
    return evidence, measured
