"""What has been measured so far, group by group, kept from time to time so that an interrupted run can go on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from planner import fsio
from planner.edits.sidecar import Unsound, open_sidecar
from planner.errors import StorageError
from planner.evidence import Grouping, Measured, Scores
from planner.evidence.measured import SETS, Floats, SetName
from planner.probes.measuring import Machine, Rows

__all__ = ["Accumulation"]

_EVERY_S = 20.0
_TIMES_SAVING = 20.0
"""Saving takes at most one part in so many of the time."""


class Accumulation:
    """The arrays while they fill. A cache that cannot be read or written costs time, never the result."""

    def __init__(self, machine: Machine, goal: Grouping, drift: Grouping, cache: Path | None, identity: str) -> None:
        self.goal, self.drift = goal, drift
        self._layout, self._reduction = machine.layout, machine.reduction
        self._arrays: dict[str, NDArray[np.generic]] = {}
        for name in SETS:
            grouping = drift if name == "fisher_drift" else goal
            rows = len(grouping.weights)
            self._arrays[f"{name}.tensors"] = np.zeros((rows, 2 * self._layout.tensors + 1))
            self._arrays[f"{name}.losses"] = np.zeros(rows)
            merged = int(grouping.merged.max()) + 1
            self._arrays[f"{name}.units"] = np.zeros((merged, self._layout.units), np.float32)
        self._arrays["goal.done"] = np.zeros(len(goal.weights))
        self._arrays["drift.done"] = np.zeros(len(drift.weights))
        self._path = cache / "probes" / f"{identity.removeprefix('blake3:')}.safetensors" if cache else None
        self._pause = _EVERY_S
        self._begun = self._saved = time.monotonic()
        self._resume()

    def has(self, text: Literal["goal", "drift"], number: int) -> bool:
        """Whether a group was measured already."""
        return bool(self._arrays[f"{text}.done"][number])

    def add(self, text: Literal["goal", "drift"], number: int, rows: Rows) -> None:
        """What one group gave."""
        grouping = self.goal if text == "goal" else self.drift
        for name in rows.losses:
            self._arrays[f"{name}.tensors"][number] = rows.tensors(name)
            self._arrays[f"{name}.losses"][number] = rows.losses[name]
            self._arrays[f"{name}.units"][grouping.merged[number]] += rows.units[name].astype(np.float32)
        self._arrays[f"{text}.done"][number] = 1.0
        if time.monotonic() - self._saved >= self._pause:
            self._save()

    def keep(self) -> None:
        """Everything is measured, and what comes next may fail: keep it, where measuring took long."""
        if time.monotonic() - self._begun >= _EVERY_S:
            self._save()

    def share(self, source: SetName, target: SetName) -> None:
        """The scores of one set are those of another, too."""
        for kind in ("tensors", "losses", "units"):
            self._arrays[f"{target}.{kind}"] = self._arrays[f"{source}.{kind}"]
        self.drift = self.goal

    def loss(self, name: SetName) -> float:
        """The loss of a set of the goal's, in nats per token or question."""
        return float(self.goal.mean(self._arrays[f"{name}.losses"][:, None].astype(np.float64))[0])

    def sketches(self) -> dict[str, tuple[Floats, Floats]]:
        """By tensor, for each half: [2, rows, r] and [2, 2 r + 1, columns]."""
        return {
            name: (outer.double().cpu().numpy(), inner.double().cpu().numpy())
            for name, (outer, inner) in self._reduction.sketches.items()
        }

    def measured(self) -> Measured:
        """The arrays by what they are."""
        sets = {
            name: Scores(
                np.asarray(self._arrays[f"{name}.tensors"], np.float64),
                np.asarray(self._arrays[f"{name}.units"], np.float32),
            )
            for name in SETS
        }
        return Measured(self._layout, self.goal, self.drift, sets)

    def discard(self) -> None:
        """The evidence is written: what was kept for going on is not needed any longer."""
        if self._path:
            with suppress(StorageError):
                fsio.remove_file(self._path)

    def _save(self) -> None:
        from safetensors.numpy import save as safetensors_bytes

        begun = time.monotonic()
        if self._path:
            held = {name: np.ascontiguousarray(array) for name, array in self._held().items()}
            with suppress(StorageError):
                fsio.ensure_folder(self._path.parent)
                fsio.replace_file(self._path, safetensors_bytes(held, metadata={"digest": _digest(held)}))
        self._saved = time.monotonic()
        self._pause = max(_EVERY_S, _TIMES_SAVING * (self._saved - begun))

    def _held(self) -> dict[str, NDArray[np.generic]]:
        held = dict(self._arrays)
        for name, (outer, inner) in self._reduction.sketches.items():
            held[f"sketch.outer.{name}"], held[f"sketch.inner.{name}"] = outer.cpu().numpy(), inner.cpu().numpy()
        return held

    def _resume(self) -> None:
        if not self._path:
            return
        expected = self._held()
        try:
            with open_sidecar(self._path) as found:
                if {name: entry.shape for name, entry in found.entries.items()} != {
                    name: array.shape for name, array in expected.items()
                }:
                    return
                held = {name: found.read(name).astype(array.dtype) for name, array in expected.items()}
                sound = found.metadata.get("digest") == _digest(held)
        except Unsound:
            return
        if not sound:
            return
        import torch

        for name, pair in self._reduction.sketches.items():
            for side, mine in zip(("outer", "inner"), pair, strict=True):
                mine.copy_(torch.from_numpy(held[f"sketch.{side}.{name}"]))
        self._arrays = {name: held[name] for name in self._arrays}


def _digest(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Of names and numbers: a file of the right shape may hold others, after a power failure."""
    hasher = blake3()
    for name in sorted(arrays):
        hasher.update(name.encode())
        hasher.update(np.ascontiguousarray(arrays[name]).data.cast("B"))
    return hasher.hexdigest()
