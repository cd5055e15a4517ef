"""Every kind of operation, from the JSON of a plan to the new bytes of the bundled model, against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from applied import applied, changed, rewritten, stored  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from planner.operations import OPERATIONS  # noqa: E402

UP = "model.layers.2.mlp.up_proj.weight"  # [192, 96]: the stream is in its columns
O_PROJ = "model.layers.2.self_attn.o_proj.weight"  # [96, 128]
HALF = 2.0**-8
"""Half a step of bfloat16, relatively."""
Tensors = dict[str, Any]


def _array(name: str) -> dict[str, str]:
    return {"file": "beside.safetensors", "array": name}


def _on(name: str, kind: str, **parameters: Any) -> dict[str, Any]:
    return {"target": {"tensors": [name]}, "operation": {"kind": kind, **parameters}}


def _in_layer(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"target": {"layers": "2"}, "operation": {"kind": kind, **parameters}}


def _exactly(expected: Callable[[Any, Tensors], Any], name: str = UP) -> Callable[[Tensors, Tensors, Tensors], None]:
    """The formula in float32, rounded once."""

    def agrees(before: Tensors, after: Tensors, beside: Tensors) -> None:
        assert changed(before, after) == {name}
        wanted = expected(before[name].float(), beside).bfloat16()
        assert torch.equal(after[name], wanted)

    return agrees


def _nearly(expected: Callable[[Any, Tensors], Any], name: str = UP) -> Callable[[Tensors, Tensors, Tensors], None]:
    """The formula in float64, up to one rounding to bfloat16."""

    def agrees(before: Tensors, after: Tensors, beside: Tensors) -> None:
        assert changed(before, after) == {name}
        wanted = expected(before[name].double(), beside)
        assert torch.allclose(after[name].double(), wanted, rtol=HALF * 1.01, atol=1e-6)

    return agrees


def _with(w: Any, rows: Any = slice(None), columns: Any = slice(None), *, factor: float) -> Any:
    w = w.clone()
    w[rows, columns] *= factor
    return w


def _unit(v: Any) -> Any:
    return v.double() / v.double().norm()


def _turned(w: Any, beside: Tensors) -> Any:
    p = _unit(beside["d"])
    q = _unit(beside["e"].double() - (beside["e"].double() @ p) * p)
    turn = torch.eye(len(p), dtype=torch.float64) - torch.outer(p, p) - torch.outer(q, q)
    return w @ (turn + torch.outer(q, p) - torch.outer(p, q)).T


def _spectrum(change: Callable[[Any], Any]) -> Callable[[Any, Tensors], Any]:
    def new(w: Any, _: Tensors) -> Any:
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return u @ torch.diag(change(s)) @ v

    return new


def _halved_top(s: Any) -> Any:
    s = s.clone()
    s[:2] *= 0.5
    return s


def _noisy(before: Tensors, after: Tensors, _: Tensors) -> None:
    assert changed(before, after) == {UP}
    noise = after[UP].double() - before[UP].double()
    assert abs(noise.std() - 0.05) < 0.002
    assert abs(noise.mean()) < 0.002


def _rows_normed(before: Tensors, after: Tensors, _: Tensors) -> None:
    assert changed(before, after) == {UP}
    assert torch.allclose(after[UP].double().norm(dim=1), torch.full((192,), 1.5, dtype=torch.float64), rtol=HALF)
    assert torch.nn.functional.cosine_similarity(before[UP].float(), after[UP].float()).min() > 0.9999


def _steered(before: Tensors, after: Tensors, beside: Tensors) -> None:
    bias = O_PROJ.replace("weight", "bias")
    assert changed(before, after) == {
        f"model.layers.{n}.self_attn.{part}_proj.bias" for n in range(6) for part in "qkvo"
    }
    assert torch.equal(after[bias], (2 * beside["d"]).bfloat16())


CASES: dict[str, tuple[dict[str, Any], Callable[[Tensors, Tensors, Tensors], None]]] = {
    "scale": (_on(UP, "scale", factor=1.07), _exactly(lambda w, _: w * 1.07)),
    "shift": (_on(UP, "shift", offset=0.013), _exactly(lambda w, _: w + 0.013)),
    "clamp": (_on(UP, "clamp", minimum=-0.1, maximum=0.05), _exactly(lambda w, _: w.clamp(-0.1, 0.05))),
    "zero": (_on(UP, "zero"), _exactly(lambda w, _: torch.zeros_like(w))),
    "soft_threshold": (
        _on(UP, "soft_threshold", threshold=0.03),
        _exactly(lambda w, _: torch.nn.functional.softshrink(w, 0.03)),
    ),
    "noise": (_on(UP, "noise", std=0.05, seed=4), _noisy),
    "normalize": (_on(UP, "normalize", norm=1.5, per="rows"), _rows_normed),
    "reduce": (_on(UP, "reduce", alpha=0.2), _exactly(lambda w, _: w * 0.8)),
    "boost": (_on(UP, "boost", alpha=0.2), _exactly(lambda w, _: w * 1.2)),
    "head_scale": (
        _in_layer("head_scale", heads="1", factor=0.3),
        _exactly(lambda w, _: _with(w, columns=slice(32, 64), factor=0.3), O_PROJ),
    ),
    "neuron_scale": (
        _in_layer("neuron_scale", neurons="5-9", factor=0.3, part="up"),
        _exactly(lambda w, _: _with(w, rows=slice(5, 10), factor=0.3)),
    ),
    "channel_scale": (
        _on(UP, "channel_scale", channels="7", factor=3.0, part="readers"),
        _exactly(lambda w, _: _with(w, columns=7, factor=3.0)),
    ),
    "project_out": (
        _on(UP, "project_out", direction=_array("d"), strength=1.0),
        _nearly(lambda w, beside: w - torch.outer(w @ _unit(beside["d"]), _unit(beside["d"]))),
    ),
    "rotate": (_on(UP, "rotate", first=_array("d"), second=_array("e"), angle=90), _nearly(_turned)),
    "rank_one": (
        _on(UP, "rank_one", u=_array("u"), v=_array("d"), strength=0.1),
        _nearly(lambda w, beside: w + 0.1 * torch.outer(beside["u"].double(), beside["d"].double())),
    ),
    "low_rank_add": (
        _on(UP, "low_rank_add", a=_array("a"), b=_array("b"), weight=0.1),
        _nearly(lambda w, beside: w + 0.1 * (beside["b"].double() @ beside["a"].double())),
    ),
    "spectral_scale": (
        _on(UP, "spectral_scale", first=1, last=2, factor=0.5),
        _nearly(_spectrum(_halved_top)),
    ),
    "spectral_clamp": (
        _on(UP, "spectral_clamp", maximum=1.0),
        _nearly(_spectrum(lambda s: s.clamp(max=1.0))),
    ),
    "rank_reduce": (_on(UP, "rank_reduce", rank=10), _nearly(_spectrum(lambda s: s * (torch.arange(len(s)) < 10)))),
    "blend": (
        _on(UP, "blend", checkpoint="other", weight=0.25),
        _nearly(lambda w, beside: w + 0.25 * (beside["other"].double() - w)),
    ),
    "bake_steering": (_on(O_PROJ, "bake_steering", vector=_array("d"), strength=2.0), _steered),
}


def test_no_kind_is_forgotten() -> None:
    assert set(CASES) == set(OPERATIONS)


@pytest.mark.parametrize("kind", CASES)
def test_the_new_bytes_are_what_torch_computes(tiny_model: Path, kind: str) -> None:
    random = torch.Generator().manual_seed(1)
    shapes = {"d": (96,), "e": (96,), "u": (192,), "a": (3, 96), "b": (192, 3), "other": (192, 96)}
    beside = {name: torch.randn(*shape, generator=random) for name, shape in shapes.items()}
    save_file({name: beside[name] for name in shapes if name != "other"}, tiny_model.parent / "beside.safetensors")
    before = stored(tiny_model)
    if kind == "blend":
        other = tiny_model.parent / "other"
        other.mkdir()
        (other / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
        save_file({UP: beside["other"]}, other / "model.safetensors")
    modification, agrees = CASES[kind]
    after = rewritten(tiny_model, modification)
    agrees(before, after, beside)
    assert changed(after, stored(applied(tiny_model, modification))) == set(), "and apply stores the same"
