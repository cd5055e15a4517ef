"""Modifications as users write them, on tiny float64 models: what the judge says, and what transformers computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from models.difference import EXACT, classify, measure
from models.tiny import Tiny, build, logits
from safetensors.numpy import save_file

from planner.architecture import ModelMap, map_of
from planner.checkpoint import open_checkpoint
from planner.edits import PlanEdits, Surroundings, Unresolved, combined, resolved, surroundings_of
from planner.effects.changes import Change, change_of
from planner.effects.verdicts import Judge, Verdict
from planner.operations import OPERATIONS
from planner.plan import Modification

__all__ = ["TRUE_OF", "Case", "Stand", "cases_for", "map_of_tiny", "truth"]

TRUE_OF = {
    "invariant": {"same"},
    "shifts_logits": {"shifted"},
    "rescales_logits": {"rescaled", "monotone"},
    "effective": {"different"},
}
"""Which outcomes an effect may be claimed of; `unknown` claims nothing."""

Arrays = dict[str, np.ndarray[Any, Any]]


def map_of_tiny(tiny: Tiny) -> ModelMap:
    """The map of a tiny model's checkpoint."""
    return map_of(tiny.config, {name: values.shape for name, values in tiny.tensors.items()})


def truth(tiny: Tiny, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> str:
    """What became of the logits. One factor together with a shift a token, before a cap if there is one, is monotone.

    `classify` looks for one monotone function for all positions; greedy choice is kept by one for each.
    """
    kind = classify(before, after)
    if kind != "different":
        return kind
    cap = tiny.config.get("final_logit_softcapping")
    if cap:
        if max(np.abs(before).max(), np.abs(after).max()) > 0.999 * cap:
            return kind
        before, after = np.arctanh(before / cap), np.arctanh(after / cap)
    found = measure(before, after)
    slope = float(((before - before.mean(1, keepdims=True)) * after).sum())
    return "monotone" if found.affine < EXACT * 100 and slope > 0 else kind


@dataclass(frozen=True)
class Case:
    """One operation on one tensor, in the words of a plan."""

    label: str
    operation: dict[str, Any]
    elements: dict[str, Any]

    @property
    def kind(self) -> str:
        """The operation's kind."""
        return str(self.operation["kind"])

    def on(self, name: str) -> Modification:
        """The modification of the tensor called `name`."""
        return Modification.model_validate(
            {
                "id": "m1",
                "target": {"tensors": [name], "elements": self.elements},
                "operation": self.operation,
                "reasoning": "r",
                "confidence": 0.5,
                "expected_impact": "e",
            }
        )


class Stand:
    """One family's checkpoint in F64, with the arrays that plans may name."""

    def __init__(self, key: str, folder: Path, *, with_copy: bool = False, tiny: Tiny | None = None) -> None:
        self.tiny = tiny or build(key, with_copy=with_copy)
        checkpoint = open_checkpoint(self.tiny.write(folder / "model", "F64"))
        lengths = {n for values in self.tiny.tensors.values() for n in (*values.shape, values.size // values.shape[-1])}
        save_file(_arrays(lengths), folder / "arrays.safetensors")
        self.folder = folder
        self.around: Surroundings = surroundings_of(checkpoint, folder)
        self.judge = Judge(self.around.model, rounded=False)

    @cached_property
    def before(self) -> np.ndarray[Any, Any]:
        """Logits of the unchanged model, without epsilon."""
        return logits(self.tiny, {}, tiny_eps=True)

    @cached_property
    def others(self) -> None:
        """Another checkpoint of the same shapes, in `other`."""
        random = np.random.default_rng(5)
        moved = {n: values + random.normal(0, 0.05, values.shape) for n, values in self.tiny.tensors.items()}
        Tiny("", self.tiny.config, moved, self.tiny.tied, "", "").write(self.folder / "other", "F64")

    def edits(self, modifications: Sequence[Modification]) -> PlanEdits:
        """What the modifications do to each tensor; raises `Unresolved`."""
        if any(m.operation.kind == "blend" for m in modifications):
            self.others  # noqa: B018
        return combined([resolved(modification, self.around) for modification in modifications], self.around)

    def verdict(self, edits: PlanEdits) -> Verdict:
        """What the judge says of them, asked as `check` asks."""
        judge, added = self.judge, {n: e.tensor.shape for n, e in edits.tensors.items() if e.added}
        if added:
            model = map_of(self.around.checkpoint.config | edits.config, self.around.shapes | added)
            judge = Judge(model, zero=frozenset(added), rounded=False)
        return judge.verdict(self.changes(edits))

    def changes(self, edits: PlanEdits) -> dict[str, Change]:
        """What is known of the tensors of which a stored bit changes."""
        return {
            name: change_of(edit.steps, edit.folded.shape)
            for name, edit in edits.tensors.items()
            if not np.array_equal(self._old(name, edits).view(np.uint64), self.new(name, edits).view(np.uint64))
        }

    def new(self, name: str, edits: PlanEdits) -> np.ndarray[Any, Any]:
        """The values that would be stored."""
        edit, old = edits.tensors[name], self._old(name, edits)
        pieces = list(edit.rewrite(lambda: iter([old.view(edit.dtype.pattern).reshape(-1)])))
        return np.concatenate(pieces).view(np.float64).reshape(old.shape)

    def _old(self, name: str, edits: PlanEdits) -> np.ndarray[Any, Any]:
        known = self.tiny.tensors.get(name)
        return np.zeros(edits.tensors[name].tensor.shape) if known is None else np.ascontiguousarray(known)

    def truth(self, edits: PlanEdits) -> str:
        """What transformers makes of them."""
        new = {name: self.new(name, edits) for name in edits.tensors}
        mine = {name: values for name, values in new.items() if name in self.tiny.tensors}
        added = {name: values for name, values in new.items() if name not in self.tiny.tensors}
        after = logits(self.tiny, mine, add=added, config_overrides=edits.config, tiny_eps=True)
        return truth(self.tiny, self.before, after)

    def tried(self, name: str, case: Case) -> tuple[Verdict, str] | None:
        """The verdict on a case and the truth; None where the operation means nothing on that tensor."""
        try:
            edits = self.edits([case.on(name)])
            return self.verdict(edits), self.truth(edits)
        except Unresolved:
            return None


def _arrays(lengths: Iterable[int]) -> Arrays:
    random = np.random.default_rng(11)
    found: Arrays = {}
    for n in sorted(set(lengths)):
        found[f"any{n}"] = random.normal(0, 0.3, n)
        found[f"other{n}"] = random.normal(0, 0.3, n)
        found[f"flat{n}"] = np.full(n, 0.2)
        found[f"factors{n}"] = random.uniform(0.6, 1.5, n)
        found[f"wide{n}"] = random.normal(0, 0.2, (2, n))
        found[f"tall{n}"] = random.normal(0, 0.2, (n, 2))
        found[f"level{n}"] = np.tile(random.normal(0, 0.2, 2), (n, 1))
    return found


def _named(array: str, **more: str) -> dict[str, str]:
    return {"file": "arrays.safetensors", "array": array, **more}


def cases_for(name: str, values: np.ndarray[Any, Any], model: ModelMap) -> Iterator[Case]:
    """Every operation that can be asked for on this tensor, each with several parameters."""
    every: dict[str, Any] = {"kind": "all"}
    columns = values.shape[-1]
    rows = values.size // columns

    def case(label: str, kind: str, elements: Mapping[str, Any] = every, **parameters: Any) -> Case:
        assert kind in OPERATIONS
        return Case(f"{kind} {label}".strip(), {"kind": kind, **parameters}, dict(elements))

    first_columns = {"kind": "columns", "indices": f"0-{max(0, columns // 2 - 1)}"}
    low, high = (float(np.quantile(values, q)) for q in (0.2, 0.8))
    for factor in (1.05, 0.5, -1.0, 30.0):
        yield case(f"{factor:g}", "scale", factor=factor)
    yield case("columns", "scale", first_columns, factor=1.3)
    yield case("by column", "scale", factor=_named(f"factors{columns}", axis="columns"))
    yield case("by row", "scale", factor=_named(f"factors{rows}", axis="rows"))
    yield case("quantile", "scale", {"kind": "magnitude_quantile", "above": 0.7}, factor=1.3)
    yield case("", "zero")
    yield case("columns", "zero", first_columns)
    yield case("below", "zero", {"kind": "signed_quantile", "below": 0.3})
    yield case("", "shift", offset=0.03)
    yield case("columns", "shift", first_columns, offset=0.03)
    yield case("0", "shift", offset=0.0)
    yield case("that bites", "clamp", minimum=low, maximum=high)
    yield case("that does not", "clamp", minimum=-1e3, maximum=1e3)
    yield case("range", "clamp", {"kind": "value_range", "minimum": high}, maximum=high)
    yield case("", "soft_threshold", threshold=0.02)
    yield case("", "noise", std=0.03, seed=4)
    yield case("whole", "normalize", norm=1.0, per="whole")
    yield case("rows", "normalize", norm=1.0, per="rows")
    yield case("", "reduce", alpha=0.1)
    yield case("", "boost", alpha=0.2)
    yield case("", "blend", checkpoint="other", weight=0.3)
    if model.parameters[name].part in ("embedding", "head"):
        yield case("tokens", "reduce", {"kind": "tokens", "ids": [3, 5]}, alpha=0.1)
        yield case("tokens", "boost", {"kind": "tokens", "ids": [3, 5]}, alpha=0.1)
    for part in ("output", "query", "key", "value"):
        yield case(f"0-1 {part}", "head_scale", heads="0-1", factor=0.5, part=part)
        yield case(f"all {part}", "head_scale", heads="0-3", factor=0.5, part=part)
        yield case(f"head {part}", "scale", {"kind": "heads", "heads": "0", "part": part}, factor=1.4)
    for part in ("down", "up", "gate_and_up"):
        yield case(part, "neuron_scale", neurons="0-5", factor=0.5, part=part)
    for part in ("writers", "readers"):
        yield case(part, "channel_scale", channels="1-3", factor=0.5, part=part)
    flipped = model.parameters[name].transposed
    outputs, inputs = (columns, rows) if flipped else (rows, columns)
    yield case("", "bake_steering", vector=_named(f"any{outputs}"), strength=1.0)
    yield case("flat", "bake_steering", vector=_named(f"flat{outputs}"), strength=1.0)
    if values.ndim < 2:
        return
    first_rows = {"kind": "rows", "indices": f"2-{max(2, rows // 2)}" if rows > 2 else "0"}
    yield case("rows", "scale", first_rows, factor=1.3)
    yield case("rows", "shift", first_rows, offset=0.03)
    approximate = {"input": _named(f"any{inputs}"), "without_bias": "rank_one", "strength": 1.0}
    yield case("rank one", "bake_steering", vector=_named(f"any{outputs}"), **approximate)
    yield case("flat rank one", "bake_steering", vector=_named(f"flat{outputs}"), **approximate)
    for axis, length in (("rows", rows), ("columns", columns)):
        if length == 1:
            continue
        parameters = {"axis": axis, "strength": 0.7}
        yield case(axis, "project_out", direction=_named(f"any{length}"), **parameters)
        yield case(f"{axis} flat", "project_out", direction=_named(f"flat{length}"), **parameters)
        turned = {"first": _named(f"any{length}"), "second": _named(f"other{length}"), "angle": 20.0}
        yield case(axis, "rotate", axis=axis, **turned)
    yield case("norm", "project_out", direction=_named(f"any{columns}"), strength=1.0, axis="columns", keep_norm=True)
    if stream := model.parameters[name].reads or model.parameters[name].writes:
        length = rows if stream == "rows" else columns
        yield case("", "project_out", direction=_named(f"any{length}"), strength=1.0)
    for u in ("any", "flat"):
        for v in ("any", "flat"):
            yield case(f"{u} {v}", "rank_one", u=_named(f"{u}{rows}"), v=_named(f"{v}{columns}"), strength=0.4)
    yield case("", "low_rank_add", a=_named(f"wide{columns}"), b=_named(f"tall{rows}"))
    yield case("level", "low_rank_add", a=_named(f"wide{columns}"), b=_named(f"level{rows}"))
    yield case("all", "spectral_scale", factor=1.2)
    yield case("first", "spectral_scale", last=1, factor=1.2)
    yield case("", "spectral_clamp", maximum=0.9)
    yield case("1", "rank_reduce", rank=1)
    yield case("all of it", "rank_reduce", rank=min(rows, columns))
