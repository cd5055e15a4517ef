"""Which elements a target means: tokens by their text, rows, columns, quantiles, ranges; and what folding does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from applied import applied, changed, resolution, rewritten, stored, unresolved  # noqa: E402
from builders import a_plan, random_tensor, write_checkpoint  # noqa: E402

from planner.checkpoint import open_checkpoint  # noqa: E402
from planner.dtypes import FLOATS  # noqa: E402
from planner.edits import resolved, surroundings_of  # noqa: E402
from planner.errors import PlanRefused  # noqa: E402
from planner.operations.base import Place  # noqa: E402
from planner.profile import histograms_of, profile_of  # noqa: E402

EMBEDDING = "model.embed_tokens.weight"
LILY, CAT = 379, 626
"""The ids of ` Lily` and ` cat` in the bundled tokenizer, by `tokenizers` itself (see the test)."""


def _tokens(kind: str, *texts: str, alpha: float | None = None, **elements: Any) -> dict[str, Any]:
    operation = {"kind": kind} | ({} if alpha is None else {"alpha": alpha})
    chosen = {"kind": "tokens", "texts": list(texts), **elements}
    return {"target": {"tensors": [EMBEDDING], "elements": chosen}, "operation": operation}


def _ids(text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(__file__).parents[2] / "examples" / "tiny-model" / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("kind", "alpha"),
    [("reduce", 0.1), ("reduce", 1.0), ("reduce", 1.7), ("boost", 0.35), ("boost", 3.0), ("zero", None)],
)
def test_token_rows_are_the_formula_in_float32_rounded_once(tiny_model: Path, kind: str, alpha: float | None) -> None:
    assert _ids(" Lily") == [LILY]
    assert _ids(" cat") == [CAT]
    before = stored(tiny_model)
    result = stored(applied(tiny_model, _tokens(kind, " Lily", " cat", alpha=alpha)))
    factor = {"reduce": 1 - (alpha or 0), "boost": 1 + (alpha or 0), "zero": 0}[kind]
    expected = before[EMBEDDING].clone()
    for row in (LILY, CAT):
        new = before[EMBEDDING][row].float() * torch.tensor(factor, dtype=torch.float32)
        expected[row] = (torch.zeros_like(new) if factor == 0 and kind == "zero" else new).bfloat16()
    assert torch.equal(result[EMBEDDING].view(torch.int16), expected.view(torch.int16))
    assert changed(before, result) == {EMBEDDING}


def test_a_text_of_several_tokens_is_an_error_that_shows_them(tiny_model: Path) -> None:
    error = unresolved(tiny_model, _tokens("zero", "Lily"))
    pieces = _ids("Lily")
    assert len(pieces) == 2
    for piece in pieces:
        assert str(piece) in str(error)
    assert "'L'" in str(error)
    assert "'ily'" in str(error)
    assert "each" in error.hint
    assert error.code == "unknown-target"
    edits = resolution(tiny_model, _tokens("zero", "Lily", each=True))
    assert edits.steps[EMBEDDING].selection.indices.tolist() == sorted(pieces)
    assert len(edits.notes) == 2


def test_which_tokens_were_meant_is_shown_with_their_siblings(tiny_model: Path) -> None:
    (note,) = resolution(tiny_model, _tokens("zero", " the")).notes
    with_space, without = _ids(" the"), _ids("the")
    assert len(with_space) == 1
    assert note.startswith(f"token {with_space[0]} is ' the'")
    if len(without) == 1:
        assert f"not 'the', which is {without[0]}" in note
    both = resolution(tiny_model, _tokens("zero", " ", spaces="as_written", ids=[LILY]))
    assert any(f"token {LILY} is ' Lily'" in note for note in both.notes)
    assert unresolved(tiny_model, _tokens("zero", ids=[99_999]))


def test_rows_that_are_no_tokens_are_not_taken_for_them(tiny_model: Path, tmp_path: Path) -> None:
    modification = _tokens("zero", " Lily")
    modification["target"]["tensors"] = ["model.layers.0.mlp.up_proj.weight"]
    error = unresolved(tiny_model, modification)
    assert "the rows of model.layers.0.mlp.up_proj.weight are not tokens" in str(error)
    (tiny_model / "tokenizer.json").unlink()
    error = unresolved(tiny_model, _tokens("zero", " Lily"))
    assert "tokenizer.json" in str(error)


def test_tokens_of_a_stored_head_by_an_unknown_family(tiny_model: Path) -> None:
    """Without a map, a table of as many rows as the vocabulary is one of tokens."""
    config = json.loads((tiny_model / "config.json").read_text()) | {"model_type": "something_new"}
    (tiny_model / "config.json").write_text(json.dumps(config))
    after = rewritten(tiny_model, _tokens("zero", " Lily"))
    assert torch.count_nonzero(after[EMBEDDING][LILY]) == 0
    modification = _tokens("zero", " Lily")
    modification["target"]["tensors"] = ["model.layers.0.mlp.up_proj.weight"]
    assert "are not tokens" in str(unresolved(tiny_model, modification))


NAMES = {"BF16": "model.layers.0.mlp.up_proj.weight", "F32": "model.layers.1.mlp.up_proj.weight"}
VECTOR = "model.norm.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {name: (dtype, random_tensor((24, 40), dtype=dtype, seed=7)) for dtype, name in NAMES.items()}
    tensors[VECTOR] = ("F32", random_tensor((40,), dtype="F32", seed=5))
    tensors["model.layers.0.experts.up"] = ("BF16", random_tensor((2, 3, 4), seed=6))
    return write_checkpoint(tmp_path / "model", tensors)


def _on(name: str, elements: dict[str, Any], kind: str = "scale", **parameters: Any) -> dict[str, Any]:
    parameters = {"factor": 1.5} if kind == "scale" and not parameters else parameters
    return {"target": {"tensors": [name], "elements": elements}, "operation": {"kind": kind, **parameters}}


@pytest.mark.parametrize("dtype", NAMES)
def test_rows_and_columns(model: Path, dtype: str) -> None:
    name = NAMES[dtype]
    before = stored(model)[name]
    for kind, along in (("rows", (slice(None),)), ("columns", (slice(None), slice(None)))):
        found = rewritten(model, _on(name, {"kind": kind, "indices": "0,5-7,5"}))[name]
        expected = before.clone()
        picked = [0, 5, 6, 7]
        if len(along) == 1:
            expected[picked] = (before[picked].float() * 1.5).to(before.dtype)
        else:
            expected[:, picked] = (before[:, picked].float() * 1.5).to(before.dtype)
        assert torch.equal(found, expected)
    error = unresolved(model, _on(name, {"kind": "rows", "indices": "24"}))
    assert str(error) == f"no 24 among the rows of {name}"
    assert error.hint == "there are 24, counted from 0"
    assert "no 40 among the columns" in str(unresolved(model, _on(name, {"kind": "columns", "indices": "39-40"})))


def test_a_vector_is_one_row_and_leading_dimensions_are_rows(model: Path) -> None:
    before = stored(model)
    found = rewritten(model, _on(VECTOR, {"kind": "columns", "indices": "3"}))[VECTOR]
    assert (found != before[VECTOR]).nonzero().flatten().tolist() == [3]
    assert "no 1 among the rows" in str(unresolved(model, _on(VECTOR, {"kind": "rows", "indices": "1"})))
    stacked = "model.layers.0.experts.up"
    found = rewritten(model, _on(stacked, {"kind": "rows", "indices": "4"}))[stacked]
    assert (found != before[stacked]).any(dim=2).nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("kept", [True, False], ids=["histogram", "bytes"])
@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("elements", ["magnitude_quantile", "signed_quantile"])
@pytest.mark.parametrize("side", ["above", "below"])
def test_quantiles_are_numpys(model: Path, kept: bool, dtype: str, elements: str, side: str) -> None:
    """At or above the order statistic, or at or below it, of |w| or of w; the histogram and the bytes agree."""
    name, quantile = NAMES[dtype], 0.9 if side == "above" else 0.15
    checkpoint = open_checkpoint(model)
    profile = profile_of(checkpoint)
    around = surroundings_of(
        checkpoint,
        model.parent,
        profile=profile if kept else None,
        histograms=histograms_of(profile) if kept else None,
    )
    (modification,) = a_plan(model, _on(name, {"kind": elements, side: quantile})).modifications
    edits = resolved(modification, around)
    values = stored(model)[name].double().numpy()
    ordered = np.abs(values) if elements == "magnitude_quantile" else values
    threshold = np.quantile(ordered, quantile, method="inverted_cdf")
    wanted = ordered >= threshold if side == "above" else ordered <= threshold
    step = edits.steps[name]
    found = step.selection.mask(values.astype(np.float32), Place(shape=(24, 40)))
    assert np.array_equal(found, wanted)
    assert 0 < wanted.sum() < wanted.size
    (note,) = edits.notes
    assert f"{wanted.sum():,} of {wanted.size:,} elements" in note
    assert f"{threshold:.6g}" in note


def test_the_top_tenth_by_magnitude_is_not_that_by_value(model: Path) -> None:
    name = NAMES["F32"]
    before = stored(model)[name]
    by_size = rewritten(model, _on(name, {"kind": "magnitude_quantile", "above": 0.9}))[name]
    by_value = rewritten(model, _on(name, {"kind": "signed_quantile", "above": 0.9}))[name]
    assert ((by_size != before) & (before < 0)).any()
    assert not ((by_value != before) & (before < 0)).any()


@pytest.mark.parametrize("dtype", NAMES)
def test_a_range_is_of_stored_values_whatever_an_earlier_modification_does(model: Path, dtype: str) -> None:
    name = NAMES[dtype]
    before = stored(model)[name]
    low, high = 0.01, 0.05
    inside = (before.double() >= low) & (before.double() <= high)
    ranged = _on(name, {"kind": "value_range", "minimum": low, "maximum": high}, "shift", offset=1.0)
    found = rewritten(model, _on(name, {"kind": "all"}, factor=3.0), ranged)[name]
    expected = torch.where(inside, before.float() * 3 + 1, before.float() * 3).to(before.dtype)
    assert inside.any()
    assert torch.equal(found, expected)
    half = rewritten(model, _on(name, {"kind": "value_range", "minimum": 0.0}, "zero"))[name]
    assert torch.equal(half != before, before > 0)


@pytest.mark.parametrize("dtype", NAMES)
def test_modifications_of_one_tensor_fold_and_round_once(model: Path, dtype: str) -> None:
    """Rounding after each would give other bits: the test would not see it if it did not."""
    name = NAMES[dtype]
    before = stored(model)[name]
    steps = (
        _on(name, {"kind": "all"}, factor=1.013),
        _on(name, {"kind": "rows", "indices": "0-11"}, "shift", offset=0.003),
        _on(name, {"kind": "all"}, factor=0.977),
        _on(name, {"kind": "columns", "indices": "0-19"}, "boost", alpha=0.07),
    )
    found = stored(applied(model, *steps))[name]

    def computed(rounded: Any) -> Any:
        x = before.float()
        x = rounded(x * np.float32(1.013).item())
        x[:12] = rounded(x[:12] + np.float32(0.003).item())
        x = rounded(x * np.float32(0.977).item())
        x[:, :20] = rounded(x[:, :20] * np.float32(1.07).item())
        return x.to(before.dtype)

    assert torch.equal(found, computed(lambda x: x))
    if dtype == "BF16":
        assert not torch.equal(found, computed(lambda x: x.bfloat16().float()))
    edit = resolution(model, steps[0])
    assert FLOATS[dtype].tabulable is (dtype == "BF16")
    assert edit.steps[name].pointwise


def test_a_plan_with_a_wrong_name_applies_nothing(tiny_model: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.is_file()}
    good = {"target": {"tensors": [VECTOR]}, "operation": {"kind": "scale", "factor": 2.0}}
    bad = {"target": {"tensors": ["model.layers.0.mlp.up_prj.weight"]}, "operation": {"kind": "zero"}}
    with pytest.raises(PlanRefused) as caught:
        applied(tiny_model, good, bad, out=tmp_path / "out")
    assert "up_proj.weight" in " ".join(map(str, caught.value.problems))
    assert not (tmp_path / "out").exists()
    assert {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.is_file()} == before
