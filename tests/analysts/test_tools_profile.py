"""The tools that read the profile: every number beside one from torch, numpy or scipy on the same bytes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import scipy.stats
import torch
from builders import a_plan, random_tensor, write_checkpoint
from safetensors.torch import load_file
from tool_benches import TINY, bench_of, facts_in, good, refused, rows_in

from planner.analysts.tools import offered
from planner.profile.peers import STATISTICS

Q = "model.layers.2.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return bench_of(TINY, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def weights():
    """Every tensor as float64."""
    return {
        name: values.double().numpy() for path in TINY.glob("*.safetensors") for name, values in load_file(path).items()
    }


def figures(cells):
    return [float(cell) for cell in cells]


def test_tensors_are_sorted_by_a_statistic_and_what_is_not_shown_is_counted(bench, weights):
    text = good(bench, "list_tensors", role="down_proj", sort_by="kurtosis", most=4)
    mine = {name: scipy.stats.kurtosis(values.ravel()) for name, values in weights.items() if "down_proj" in name}
    rows = rows_in(text)
    assert [row["name"] for row in rows] == sorted(mine, key=mine.get, reverse=True)[:4]
    assert figures(row["kurtosis (a fact to cite)"] for row in rows) == pytest.approx(
        [mine[row["name"]] for row in rows], rel=1e-5
    )
    for row in rows:
        assert row["shape"] == "x".join(map(str, weights[row["name"]].shape))
        assert (row["dtype"], row["role"]) == ("BF16", "down_proj")
        assert row["layer"] == row["name"].split(".")[2]
    assert text.startswith("4 of 6 tensors")
    assert "2 more are not shown" in text


def test_all_tensors_in_the_order_of_the_files_where_nothing_is_asked(bench):
    text = good(bench, "list_tensors", pattern=None, role=None, layers=None, sort_by=None, most=200)
    assert [row["name"] for row in rows_in(text)] == [tensor.name for tensor in bench.brief.profile.tensors]
    assert "not shown" not in text
    assert "layer | rms (a fact" in text


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"pattern": "model.layers.{1,3}.self_attn.?_proj.weight", "role": "k_proj"}, ["1", "3"]),
        ({"role": "k_proj", "layers": "0-1,5"}, ["0", "1", "5"]),
        ({"pattern": "*.k_proj.*", "layers": "4"}, ["4"]),
    ],
)
def test_pattern_role_and_layers_must_all_hold(bench, asked, names):
    found = [row["name"] for row in rows_in(good(bench, "list_tensors", **asked))]
    assert found == [f"model.layers.{layer}.self_attn.k_proj.weight" for layer in names]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"pattern": "model.layers.2.q_proj"}, Q),
        ({"pattern": "model.layers.{0-9}.*"}, "model.layers.6"),
        ({"pattern": "a{9-1}"}, "runs backwards"),
        ({"pattern": "x" * 1100}, "1024"),
        ({"pattern": "*{0-9999}*{0-9}*"}, "too many here"),
        ({"role": "q_prj"}, "q_proj"),
        ({"role": "zzzz"}, "embed_tokens"),
        ({"layers": "6"}, "layers here: 0 to 5"),
        ({"layers": "one"}, "not a list of numbers"),
        ({"pattern": "*q_proj*", "role": "k_proj"}, "none together"),
        ({"sort_by": "stable_rank"}, "stable_rank"),
        ({"sort_by": "loudness"}, "kurtosis"),
        ({"most": 0}, "greater than or equal to 1"),
        ({"most": 201}, "200"),
        ({"most": "5"}, "integer"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(bench, asked, said):
    assert said in refused(bench, "list_tensors", **asked)


def test_every_statistic_is_that_of_the_bytes(bench, weights):
    for name in (Q, "model.embed_tokens.weight", "model.layers.2.input_layernorm.weight"):
        x = weights[name].ravel()
        facts = facts_in(good(bench, "tensor_statistics", tensors=[name]))
        expected = {
            "mean": x.mean(),
            "std": x.std(),
            "min": x.min(),
            "max": x.max(),
            "abs_max": np.abs(x).max(),
            "rms": np.sqrt(np.mean(x**2)),
            "l2_norm": np.linalg.norm(x),
            "skewness": scipy.stats.skew(x),
            "kurtosis": scipy.stats.kurtosis(x),
            "zeros": np.count_nonzero(x == 0),
            "nan": 0,
            "inf": 0,
            "distinct_values": len(np.unique(x)),
            "elements": x.size,
        }
        for q in ("0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999"):
            expected[f"quantiles.{q}"] = np.quantile(x, float(q), method="inverted_cdf")
        for k in (3, 6):
            expected[f"outliers.{k}"] = np.count_nonzero(np.abs(x - x.mean()) > k * x.std())
        assert facts == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_a_plan_may_cite_exactly_what_is_said_to_be_citable(bench):
    text = good(bench, "tensor_statistics", tensors=[Q])

    def problems(facts):
        cited = [{"tensor": Q, "fact": fact, "value": value} for fact, value in facts.items()]
        change = {"target": {"roles": ["down_proj"]}, "operation": {"kind": "scale", "factor": 1.05}, "evidence": cited}
        return bench.brief.check(a_plan(TINY, change)).problems

    assert not problems(facts_in(text))
    others = facts_in(text, "no facts to cite")
    assert len(problems(others)) == len(others) > 3, "each of them is refused"


def test_norms_of_rows_columns_and_heads(bench, weights):
    text = good(bench, "tensor_statistics", tensors=[Q])
    (rows,) = [line for line in text.splitlines() if line.startswith("norms of rows")]
    norms = np.linalg.norm(weights[Q], axis=1)
    assert f"count = {len(norms)}, " in rows
    assert f"max = {norms.max():.6g}, " in rows
    assert f"largest at {', '.join(map(str, np.argsort(-norms)[:3]))}" in rows
    (heads,) = [line for line in text.splitlines() if line.startswith("norms of 4 query heads")]
    bands = np.linalg.norm(weights[Q].reshape(4, -1), axis=1)
    assert figures(heads.partition(": ")[2].split(", ")) == pytest.approx(bands, rel=1e-5)


def test_peers_and_the_largest_element(bench, weights):
    text = good(bench, "tensor_statistics", tensors=[Q, Q])
    assert text.count("facts to cite: mean") == 1, "a name given twice is described once"
    place = np.unravel_index(np.abs(weights[Q]).argmax(), weights[Q].shape)
    assert f"[{place[0]}, {place[1]}] = {weights[Q][place]:.6g}" in text
    logs = np.log([np.sqrt(np.mean(weights[Q.replace("2", str(n))] ** 2)) for n in range(6)])
    z = (logs[2] - np.median(logs)) / scipy.stats.median_abs_deviation(logs, scale="normal")
    assert f"rms {z:+.2f} (median {np.exp(np.median(logs)):.6g})" in text


def test_names_that_are_none_are_refused_all_at_once_with_the_nearest(bench):
    text = refused(bench, "tensor_statistics", tensors=["layers.2.q_proj", Q, "nothing like it"])
    assert Q in text
    assert '"nothing like it"' in text
    assert "list_tensors" in text
    assert "at most 8" in refused(bench, "tensor_statistics", tensors=[Q] * 9)
    assert "at least 1" in refused(bench, "tensor_statistics", tensors=[])


@pytest.mark.parametrize("bins", [None, 1, 7, 40])
def test_a_histogram_counts_as_numpy_does(bench, weights, bins):
    text = good(bench, "histogram", tensor=Q, bins=bins)
    counts, edges = np.histogram(weights[Q], bins=bins or 20)
    rows = rows_in(text)
    assert [int(row["count"]) for row in rows] == counts.tolist()
    assert figures(row["from"] for row in rows) == pytest.approx(edges[:-1], rel=1e-5, abs=1e-9)
    assert figures(row["to"] for row in rows) == pytest.approx(edges[1:], rel=1e-5, abs=1e-9)
    assert f"{weights[Q].size} finite elements" in text


def test_a_histogram_that_is_not_kept_or_has_nothing_to_draw(bench, tmp_path):
    constant = {
        "model.norm.weight": ("BF16", np.full(8, 0x3F80, np.uint16)),
        "model.rope.inv_freq": ("F32", np.arange(8, dtype=np.uint32)),
    }
    folder = write_checkpoint(tmp_path / "m", constant)
    other = bench_of(folder, tmp_path / "cache")
    assert "nothing to draw; min = 1, max = 1" in good(other, "histogram", tensor="model.norm.weight")
    shutil.rmtree(tmp_path / "cache")
    assert "no histogram" in refused(bench_of_profile_only(other), "histogram", tensor="model.norm.weight")
    assert "40" in refused(bench, "histogram", tensor=Q, bins=41)


def bench_of_profile_only(bench):
    """The same without what was kept beside the profile."""
    from dataclasses import replace

    return replace(bench, brief=replace(bench.brief, histograms=None))


def test_layers_are_compared_as_scipy_compares_them(bench, weights):
    text = good(bench, "compare_layers", role="down_proj", statistic="kurtosis")
    values = [scipy.stats.kurtosis(weights[f"model.layers.{n}.mlp.down_proj.weight"].ravel()) for n in range(6)]
    rows = rows_in(text)
    assert [row["layer"] for row in rows] == list("012345")
    assert figures(row["value"] for row in rows) == pytest.approx(values, rel=1e-5)
    z = (values - np.median(values)) / scipy.stats.median_abs_deviation(values, scale="normal")
    assert figures(row["z"] for row in rows) == pytest.approx(z, abs=0.006)
    assert f"median {np.median(values):.6g}" in text
    assert [row["name"] for row in rows] == [f"model.layers.{n}.mlp.down_proj.weight" for n in range(6)]


def test_a_statistic_that_is_no_fact_says_what_to_cite(bench):
    text = good(bench, "compare_layers", role="down_proj", statistic="outliers_3")
    assert "outliers.3 is their count" in text
    for statistic in STATISTICS:
        if statistic == "spectral_norm":  # from here on they need singular values
            break
        text = good(bench, "list_tensors", sort_by=statistic)
        assert "a fact to cite" in text or "no fact to cite" in text or "is their count" in text


def test_roles_outside_the_layers_and_unmeasured_statistics_are_refused(bench):
    assert "outside the layers" in refused(bench, "compare_layers", role="embed_tokens", statistic="rms")
    assert "was not measured" in refused(bench, "compare_layers", role="q_proj", statistic="stable_rank")
    assert "there are std" in refused(bench, "compare_layers", role="q_proj", statistic="volume")


def offered_statistics(bench):
    """What list_tensors and compare_layers offer, by the schema that a model sees."""
    by_name = {tool.name: tool.parameters["properties"] for tool in offered(bench)}
    listed = next(one["enum"] for one in by_name["list_tensors"]["sort_by"]["anyOf"] if "enum" in one)
    compared = by_name["compare_layers"]["statistic"]["enum"]
    assert listed == compared
    return listed


def test_only_statistics_that_the_profile_has_are_offered(bench, tmp_path):
    spectral = {"spectral_norm", "stable_rank", "effective_rank", "tail_exponent"}
    assert set(offered_statistics(bench)) == STATISTICS.keys() - spectral
    for tool, asked in (
        ("compare_layers", {"role": "q_proj", "statistic": "stable_rank"}),
        ("list_tensors", {"sort_by": "stable_rank"}),
    ):
        assert refused(bench, tool, **asked).endswith(f"; there are {', '.join(offered_statistics(bench))}")
    for statistic in offered_statistics(bench):
        assert rows_in(good(bench, "list_tensors", sort_by=statistic))
    measured = bench_of(TINY, tmp_path, spectra=True)
    assert set(offered_statistics(measured)) == STATISTICS.keys()
    assert rows_in(good(measured, "list_tensors", sort_by="stable_rank"))


def test_experts_are_summarised_layer_by_layer(tmp_path):
    tensors = {}
    for layer in range(3):
        for expert in range(5):
            values = random_tensor((8, 16), seed=10 * layer + expert, std=0.4 if (layer, expert) == (1, 3) else 0.05)
            tensors[f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"] = ("BF16", values)
        fused = np.stack([random_tensor((8, 4), seed=layer, std=0.05 * (1 + e)) for e in range(3)])
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = ("BF16", fused)
    bench = bench_of(write_checkpoint(tmp_path / "moe", tensors, config={"model_type": "x"}), tmp_path / "cache")
    text = good(bench, "compare_layers", role="experts.up_proj", statistic="rms")
    rows = rows_in(text)
    assert [row["tensors"] for row in rows] == ["5", "5", "5"]
    assert rows[1]["farthest"] == "model.layers.1.mlp.experts.3.up_proj.weight"
    assert float(rows[1]["max"]) == pytest.approx(0.4, rel=0.2)
    assert float(rows[1]["its z"]) > 6
    text = good(bench, "compare_layers", role="down_proj", statistic="rms")
    stored = torch.from_numpy(tensors["model.layers.0.mlp.experts.down_proj"][1].view(np.int16)).view(torch.bfloat16)
    rms = stored.double().pow(2).mean((1, 2)).sqrt()
    assert f"its 3 experts: median {rms[1]:.6g}, from {rms[0]:.6g} (expert 0) to {rms[2]:.6g} (expert 2)" in text
    assert "3 experts (no facts" in good(bench, "tensor_statistics", tensors=["model.layers.0.mlp.experts.down_proj"])


def test_singular_values_where_they_were_asked_for(tmp_path, weights):
    bench = bench_of(TINY, tmp_path, spectra=True)
    text = good(bench, "tensor_statistics", tensors=[Q])
    (line,) = [line for line in text.splitlines() if line.startswith("singular values")]
    values = np.linalg.svd(weights[Q], compute_uv=False)
    assert figures(line.partition(": ")[2].partition(";")[0].split(", ")) == pytest.approx(values[:10], rel=1e-5)
    assert rows_in(good(bench, "compare_layers", role="q_proj", statistic="stable_rank"))


def test_values_that_are_not_read_have_no_statistics(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = write_checkpoint(tmp_path / "m", {name: ("C64", np.zeros(8, np.complex64))})
    bench = bench_of(folder, tmp_path / "cache")
    text = good(bench, "tensor_statistics", tensors=[name])
    assert "values of C64 are not read here" in text
    assert "facts to cite" not in text
    assert "no histogram" in refused(bench, "histogram", tensor=name)
