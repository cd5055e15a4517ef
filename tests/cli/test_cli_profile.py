"""`planner profile` for people and for programs: the overview, single tensors, sorted lists, tables in files."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint

from planner.checkpoint import open_checkpoint
from planner.cli.console import Screen
from planner.cli.profile_table import show_overview, sparkline
from planner.dtypes import FLOATS
from planner.profile import Profile, TensorProfile, profile_checkpoint
from planner.profile.wording import score

DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def odd_model(tmp_path: Path) -> Path:
    """Ten layers of which the fourth is three times as large, one duplicate, one NaN, one row of zeros."""
    tensors = {"model.embed_tokens.weight": ("BF16", random_tensor((64, 64), seed=99))}
    for layer in range(10):
        values = FLOATS["BF16"].decode(random_tensor((64, 96), seed=layer)) * (3 if layer == 4 else 1)
        if layer == 6:
            values[5] = 0
        if layer == 7:
            values[1, 2] = np.nan
        tensors[DOWN.format(layer)] = ("BF16", FLOATS["BF16"].encode(values))
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = ("BF16", random_tensor((96, 64), seed=50 + layer % 9))
    return write_checkpoint(tmp_path / "odd", tensors)


def test_the_overview_says_what_is_notable_and_names_the_layer_that_stands_out(planner, odd_model):
    found = planner("profile", odd_model)
    assert found.status == 0
    lines = found.out.splitlines()
    told = [line.strip() for line in lines if line.startswith("  - ")]
    assert told[0] == "- layer 7 down_proj holds 1 NaN"
    assert {"- row 5 of layer 6 down_proj is zero throughout", "- layers 0 and 9 up_proj hold the same bytes"} <= {
        *told
    }
    assert any(line.startswith("- layer 4 down_proj: rms 0.1") and "3x its peers" in line for line in told)
    [row] = [line for line in lines if line.strip().startswith("down_proj")]
    assert re.search(r" 0-9 +BF16 +64x96 +4\d\.\d% +0\.0\d+ +0\.0\d+\.\.0\.15 +▁▁▁▁█▁▁▁▁▁ +4: z \+\d", row)
    assert len([line for line in lines if line.strip().startswith(("down_proj", "up_proj", "embed_tokens"))]) == 3


def test_the_bars_show_another_statistic_on_request(planner, odd_model):
    rms = planner("profile", odd_model, "--statistic", "abs_max")
    assert re.search(r"down_proj .*█.* 4: z \+", rms.out)
    kurtosis = planner("profile", odd_model, "--statistic", "kurtosis").out
    assert "kurtosis" in kurtosis
    assert "4: z" not in re.search(r"\n *down_proj .*", kurtosis)[0], "three times as large has the same kurtosis"


def test_an_unknown_statistic_is_refused_with_those_there_are(planner, tiny_model):
    for option in ("--statistic", "--sort"):
        found = planner("profile", tiny_model, option, "sdt")
        assert (found.status, "'sdt'" in found.err) == (2, True)
        assert "abs_max" in found.err
        assert "kurtosis" in found.err


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (DOWN.format(3), [3]),
        ("down_proj", list(range(6))),
        ("*.down_proj.weight", list(range(6))),
        ("model.layers.{1-2}.mlp.down*", [1, 2]),
        ("model.layers.{0,5}.mlp.down_proj.weight", [0, 5]),
        ("model.layers.[12].mlp.down_proj.weight", [1, 2]),
    ],
)
def test_a_pattern_is_a_name_a_role_or_a_glob_as_in_a_plan(planner, tiny_model, pattern, layers):
    found = planner("profile", tiny_model, "--tensor", pattern)
    assert found.status == 0
    assert [line for line in found.out.splitlines() if line.startswith("model.")] == [DOWN.format(n) for n in layers]
    document = planner("profile", tiny_model, "--tensor", pattern, "--json").json
    assert [tensor["layer"] for tensor in document["tensors"]] == layers
    assert document.keys() >= {"fingerprint", "parameters", "bytes", "tensors"}
    assert document["parameters"] == 652_896, "of the model, not of what is shown"


def test_several_patterns_are_taken_together(planner, tiny_model):
    document = planner("profile", tiny_model, "--tensor", "norm", "--tensor", "embed_tokens", "--json").json
    assert {tensor["role"] for tensor in document["tensors"]} == {"norm", "embed_tokens"}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("down_prjo", "nearest: down_proj"), ("*.nothing.*", "there are 68"), ("x{3-1}", "{1-3}"), ("layers.{7}.x", "")],
)
def test_a_pattern_that_means_nothing_is_refused_with_what_is_near(planner, tiny_model, pattern, hint):
    found = planner("profile", tiny_model, "--tensor", pattern)
    assert found.status == 2
    assert found.err.startswith("error[usage]: --tensor ")
    assert hint in found.err.splitlines()[-1]
    assert found.out == ""


def test_a_tensor_is_shown_with_all_that_is_known_of_it(planner, odd_model):
    out = planner("profile", odd_model, "--tensor", DOWN.format(4)).out
    measured = profile_checkpoint(open_checkpoint(odd_model)).by_name[DOWN.format(4)]
    for name in ("mean", "std", "skewness", "kurtosis", "min", "max", "abs_max", "rms", "l2_norm"):
        assert f"{name}={getattr(measured, name):.5g}" in out
    for part in (f"0.1%={measured.quantiles['0.001']:.5g}", f"beyond-3-std={measured.outliers['3']}", measured.digest):
        assert part in out
    assert "layer 4; BF16 64x96, 6,144 elements" in out
    assert re.search(r"rows: 64: norm .*; largest at \d+", out)
    assert re.search(r"robust z: among 10 peers: .*rms=\+\d\d", out)
    assert "notable: layer 4 down_proj: rms " in out
    [place] = re.findall(r"largest: \((\d+),(\d+)\)=(\S+)", out)
    stored = FLOATS["BF16"].decode(random_tensor((64, 96), seed=4)) * 3
    assert np.abs(stored).argmax() == int(place[0]) * 96 + int(place[1])


def test_no_more_than_twenty_tensors_are_shown_and_the_rest_is_counted(planner, tiny_model):
    out = planner("profile", tiny_model, "--tensor", "*").out
    assert len([line for line in out.splitlines() if line.startswith("model.")]) == 20
    assert "(48 more tensors match" in out


def test_a_sorted_list_starts_with_the_largest_magnitude_and_has_a_limit(planner, tiny_model):
    everything = planner("profile", tiny_model, "--json").json["tensors"]
    ranked = sorted(everything, key=lambda t: -abs(t["skewness"]))
    out = planner("profile", tiny_model, "--sort", "skewness", "--limit", 7).out
    assert re.findall(r"^ (model\.\S+)", out, flags=re.M) == [tensor["name"] for tensor in ranked[:7]]
    assert "(61 more; --limit N" in out
    ordered = planner("profile", tiny_model, "--sort", "skewness", "--json").json["tensors"]
    assert [tensor["name"] for tensor in ordered] == [tensor["name"] for tensor in ranked], "all of them, in order"


def test_what_has_no_value_comes_last(planner, tmp_path):
    tensors = {"a.weight": ("C64", np.zeros(4, np.complex64)), "b.weight": ("BF16", random_tensor((4, 4)))}
    model = write_checkpoint(tmp_path / "model", tensors)
    out = planner("profile", model, "--sort", "rms").out
    assert re.findall(r"^ (\S\.weight) +(\S+)", out, flags=re.M)[1] == ("a.weight", "-")
    assert "not read" in planner("profile", model, "--tensor", "a.weight").out
    assert planner("profile", model).status == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet", "arrow"])
def test_a_table_is_written_by_the_suffix_of_its_name(planner, tiny_model, tmp_path, suffix):
    path = tmp_path / f"table.{suffix}"
    if suffix != "csv":
        arrow = pytest.importorskip("pyarrow")
    assert planner("profile", tiny_model, "--tensor", "q_proj", "--export", path).status == 0
    if suffix == "csv":
        names = [row["name"] for row in csv.DictReader(io.StringIO(path.read_text(), newline=""))]
    elif suffix == "arrow":
        names = arrow.ipc.open_file(path.read_bytes()).read_all()["name"].to_pylist()
    else:
        names = pytest.importorskip("pyarrow.parquet").read_table(path)["name"].to_pylist()
    assert names == [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(6)]


def test_a_table_is_refused_before_any_weight_is_read(planner, tiny_model, tmp_path, monkeypatch):
    def read(*_: object, **__: object) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("planner.profile.profile_of", read)
    (tmp_path / "there.csv").write_text("kept")
    cases = {"there.csv": (2, "output-exists"), "x.xlsx": (2, "usage"), "no/x.csv": (7, "storage")}
    for name, (status, code) in cases.items():
        found = planner("profile", tiny_model, "--export", tmp_path / name)
        assert (found.status, found.err.partition("]")[0]) == (status, f"error[{code}")
    assert (tmp_path / "there.csv").read_text() == "kept"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    found = planner("profile", tiny_model, "--export", tmp_path / "x.parquet")
    assert (found.status, found.err.partition("]")[0]) == (2, "error[extra-missing")


class Terminal(io.StringIO):
    """A terminal of a given encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


@pytest.fixture
def in_terminal(monkeypatch) -> Callable[..., str]:
    """What the overview of a profile looks like in a terminal so many columns wide."""

    def show(profile: Profile, width: int, *, encoding: str = "utf-8") -> str:
        terminal, talk = Terminal(encoding), Terminal(encoding)
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", talk)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(width))
        show_overview(profile, Screen(), "std")
        monkeypatch.undo()
        return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())

    return show


def experts(layers: int = 48, count: int = 16) -> Profile:
    random = np.random.default_rng(0)
    base = {"dtype": "BF16", "shape": [64, 96], "elements": 6144, "digest": "d", "understood": True}
    tensors = [
        TensorProfile(
            **base,
            name=f"model.layers.{layer}.mlp.experts.{n}.down_proj.weight",
            role="experts.down_proj",
            layer=layer,
            expert=n,
            std=float(std) * (9 if (layer, n) == (30, 7) else 1),
        )
        for layer in range(layers)
        for n, std in enumerate(random.lognormal(-3, 0.1, count))
    ]
    told = {"fingerprint": "blake3:0", "created": "", "planner_version": "0", "model_type": None}
    return Profile(
        **told, name="moe", tied_embeddings=None, parameters=6144 * len(tensors), bytes=0, tensors=tuple(tensors)
    )


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal_and_experts_share_one(in_terminal, width):
    shown = in_terminal(experts(), width)
    assert max(len(line) for line in shown.splitlines()) <= max(width, len("blake3:") + 64)
    [row] = [line for line in shown.splitlines() if "experts.down_proj" in line]
    assert "30.7: z +" in row
    assert ("0-47 x16" in row) == (width >= 100)
    bars = [word for word in row.split() if set(word) <= set("▁▂▃▄▅▆▇█")]
    assert [len(word) for word in bars] == [{60: 14, 80: 14, 100: 28, 140: 48}[width]]


def test_a_terminal_that_knows_ascii_only_gets_ascii(in_terminal):
    shown = in_terminal(experts(), 100, encoding="ascii")
    assert shown.isascii()
    assert re.search(r"[-_~=+*%#]{28}", shown)


def test_a_bar_is_as_high_as_its_value_lies_between_the_least_and_the_most(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal("utf-8"))
    course = {layer: float(layer) for layer in range(8)}
    assert sparkline(course, range(8), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline({0: 1.0, 2: 2.0}, range(3), 3) == "▁.█", "a layer without the role"
    assert sparkline({0: 5.0, 1: 5.0}, range(2), 2) == "▅▅"
    assert sparkline({0: -1e308, 1: 1e308}, range(2), 2) == "▁█"
    assert sparkline({}, range(3), 3) == sparkline({}, [], 0) == ""
    spiked = dict.fromkeys(range(100), 1.0) | {37: 9.0}
    assert sparkline(spiked, range(100), 10) == "▁▁▁█▁▁▁▁▁▁", "folding loses no outlier"


def test_with_json_people_are_shown_nothing(planner, odd_model):
    for options in ([], ["--tensor", "down_proj"], ["--sort", "std"]):
        found = planner("profile", odd_model, "--json", *options)
        json.loads(found.out)
        assert found.err == ""


def test_the_experts_of_a_fused_tensor_are_told_apart(planner, tmp_path):
    tensors = {
        f"model.layers.{layer}.mlp.experts.down_proj": ("BF16", random_tensor((4, 24, 16), seed=layer))
        for layer in range(6)
    }
    folder = write_checkpoint(tmp_path / "fused", tensors)
    found = planner("profile", folder, "--spectra", "--tensor", "*.2.*", "--json").json["tensors"]
    assert [tensor["name"] for tensor in found] == ["model.layers.2.mlp.experts.down_proj"]
    experts = found[0]["experts"]
    values = FLOATS["BF16"].decode_float64(tensors[found[0]["name"]][1])
    assert experts["std"] == pytest.approx(values.std(axis=(1, 2)).tolist(), rel=1e-12)
    assert [one["spectral_norm"] for one in experts["spectra"]] == pytest.approx(
        np.linalg.norm(values, ord=2, axis=(1, 2)).tolist(), rel=1e-9
    )
    shown = planner("profile", folder, "--spectra", "--tensor", "*.2.*").out
    assert "  experts: 4, least and most: mean=" in shown
    assert "  their spectra: least and most: spectral_norm=" in shown


def test_a_dead_expert_is_named_and_not_its_rows(planner, tmp_path):
    values = random_tensor((8, 16, 32))
    values[3] = 0
    folder = write_checkpoint(tmp_path / "m", {"model.layers.1.mlp.experts.gate_up_proj": ("BF16", values)})
    told = [line.strip() for line in planner("profile", folder).out.splitlines() if line.startswith("  - ")]
    assert told == ["- layer 1 gate_up_proj: expert 3 zero throughout"]


def test_out_is_a_folder_of_its_own(planner, odd_model, tmp_path):
    names = sorted(path.name for path in odd_model.iterdir())
    refused = planner("profile", odd_model, "--out", odd_model)
    assert refused.status == 2
    assert "holds a checkpoint" in refused.err
    assert sorted(path.name for path in odd_model.iterdir()) == names
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "profile.json").write_text('{"mine": 1}')
    assert planner("profile", odd_model, "--out", tmp_path / "mine").status == 2
    assert (tmp_path / "mine" / "profile.json").read_text() == '{"mine": 1}'
    assert planner("profile", odd_model, "--out", tmp_path / "mine" / "profile.json").status == 2
    (tmp_path / "folder" / "profile.json").mkdir(parents=True)
    assert planner("profile", odd_model, "--out", tmp_path / "folder").status == 2
    for _ in range(2):  # one's own is replaced
        assert planner("profile", odd_model, "--out", tmp_path / "own").status == 0
    assert planner("report", tmp_path / "own", "--out", tmp_path / "page.html").status == 0


def test_a_statistic_of_spectra_asks_for_them(planner, odd_model):
    for option in ("--statistic", "--sort"):
        refused = planner("profile", odd_model, option, "stable_rank")
        assert refused.status == 2
        assert "hint: add --spectra" in refused.err
    assert planner("profile", odd_model, "--sort", "stable_rank", "--spectra").status == 0


def test_scores_beyond_measure_are_short():
    assert [score(z) for z in (1.25, -99.96, 343.2, 6.9e10, -1e300)] == ["+1.2", "-100.0", "+343", ">+999", "<-999"]
