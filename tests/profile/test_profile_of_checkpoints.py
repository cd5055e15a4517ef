"""Profiles of whole checkpoints, against torch; and the memory that a large one takes."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from blake3 import blake3
from builders import random_tensor, write_checkpoint, write_shard

from planner.checkpoint import fingerprint_checkpoint, open_checkpoint, tensor_digests
from planner.profile import QUANTILES, Profile, profile_checkpoint, sweep


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(shard)
    return tensors


def assert_as_torch_computes(profile: Profile, tensors: dict[str, torch.Tensor]) -> None:
    assert profile.by_name.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found, x = profile.by_name[name], tensor.double().reshape(-1)
        assert found.shape == tuple(tensor.shape)
        assert found.elements == tensor.numel()
        assert found.mean == pytest.approx(x.mean().item(), rel=1e-9, abs=1e-12)
        assert found.std == pytest.approx(x.std(correction=0).item(), rel=1e-9)
        assert found.rms == pytest.approx(x.square().mean().sqrt().item(), rel=1e-9)
        assert found.l2_norm == pytest.approx(torch.linalg.vector_norm(x).item(), rel=1e-9)
        assert (found.min, found.max) == (x.min().item(), x.max().item())
        assert found.abs_max == x.abs().max().item()
        if found.std:
            z = (x - x.mean()) / x.std(correction=0)
            assert found.skewness == pytest.approx(z.pow(3).mean().item(), rel=1e-8, abs=1e-9)
            assert found.kurtosis == pytest.approx(z.pow(4).mean().item() - 3, rel=1e-8, abs=1e-9)
            assert found.outliers == {k: int((z.abs() > int(k)).sum()) for k in ("3", "6")}
        assert found.zeros == int((x == 0).sum())
        assert (found.nan, found.inf) == (0, 0)
        assert found.distinct_values == len(x.unique())
        expected = {f"{q:g}": np.quantile(x.numpy(), q, method="inverted_cdf") for q in QUANTILES}
        assert found.quantiles == expected
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert found.digest == "blake3:" + blake3(raw).hexdigest()


def test_the_bundled_model_is_what_torch_computes(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    profile = profile_checkpoint(checkpoint)
    tensors = loaded(tiny_model)
    assert_as_torch_computes(profile, tensors)
    assert profile.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert profile.bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert profile.fingerprint == fingerprint_checkpoint(checkpoint)
    assert profile.name == "tiny-model"
    config = json.loads((tiny_model / "config.json").read_text())
    assert profile.model_type == config["model_type"]
    assert profile.tied_embeddings == config["tie_word_embeddings"]


@pytest.mark.parametrize("name", ["stories260k", "stories260k-bf16", "stories260k-sharded"])
def test_a_checkpoint_trained_by_others_is_what_torch_computes(name: str, assets: Path) -> None:
    assert_as_torch_computes(profile_checkpoint(open_checkpoint(assets / name)), loaded(assets / name))


def test_a_profile_survives_json(tiny_model: Path) -> None:
    profile = profile_checkpoint(open_checkpoint(tiny_model))
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    first: dict[str, Any] = json.loads(profile.model_dump_json())["tensors"][0]
    promised = {"name", "role", "layer", "dtype", "shape", "mean", "std", "min", "max", "abs_max", "rms", "l2_norm"}
    promised |= {"skewness", "kurtosis", "zeros", "nan", "inf", "quantiles", "outliers", "distinct_values"}
    assert promised <= first.keys()
    assert list(first["quantiles"]) == ["0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999"]
    assert list(first["outliers"]) == ["3", "6"]


def test_progress_counts_every_byte_once_in_every_dtype(tmp_path: Path) -> None:
    tensors = {name: (name, random_tensor((50,), dtype=name)) for name in ("F16", "BF16", "F32", "F64")}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors | {"i": ("I64", np.arange(4, dtype="<u8"))}))
    seen: list[int] = []
    profile = profile_checkpoint(checkpoint, progress=seen.append)
    assert sum(seen) == checkpoint.nbytes == profile.bytes
    assert {tensor.name: tensor.digest for tensor in profile.tensors} == tensor_digests(checkpoint)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_tensor_of_several_pieces_is_what_it_is_in_one(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: (name, random_tensor((30, 10), dtype=name)) for name in ("F16", "BF16", "F32", "F64")}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors))
    whole = profile_checkpoint(checkpoint, workers=workers)
    monkeypatch.setattr(sweep, "_PIECE", 112)
    cut = profile_checkpoint(checkpoint, workers=workers)
    for tensor in whole.tensors:
        other = cut.by_name[tensor.name]
        for fact in ("digest", "quantiles", "outliers", "largest", "zeros", "distinct_values"):
            assert getattr(other, fact) == getattr(tensor, fact)
        assert [other.mean, other.std, other.kurtosis, other.rows.cv, other.columns.cv] == pytest.approx(
            [tensor.mean, tensor.std, tensor.kurtosis, tensor.rows.cv, tensor.columns.cv], rel=1e-12, abs=1e-15
        )
    assert cut == profile_checkpoint(checkpoint, workers=1).model_copy(update={"created": cut.created})


def test_a_dtype_that_is_not_understood_is_hashed_and_said_so(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"f4": ("F4", (8,), b"abcd"), "c": ("C64", (1,), bytes(8))})
    profile = profile_checkpoint(open_checkpoint(tmp_path))
    assert [tensor.understood for tensor in profile.tensors] == [False, False]
    assert profile.by_name["f4"].digest == "blake3:" + blake3(b"abcd").hexdigest()
    assert (profile.by_name["c"].mean, profile.by_name["c"].quantiles) == (None, {})
    assert profile.parameters == 9


def test_odd_tensors_have_profiles(tmp_path: Path) -> None:
    tensors = {
        "scalar": ("F32", (), struct.pack("<f", 2.5)),
        "empty": ("F32", (0, 3), b""),
        "broken": ("F16", (2,), struct.pack("<2H", 0x7C00, 0x7E00)),
        "": ("BF16", (1,), b"\x80\x3f"),
    }
    write_shard(tmp_path / "model.safetensors", tensors)
    profile = profile_checkpoint(open_checkpoint(tmp_path))
    assert (profile.by_name["scalar"].mean, profile.by_name["scalar"].shape) == (2.5, ())
    assert (profile.by_name["empty"].mean, profile.by_name["empty"].elements) == (None, 0)
    assert (profile.by_name["broken"].inf, profile.by_name["broken"].nan) == (1, 1)
    assert profile.by_name[""].mean == 1.0
    assert profile.model_type is None


@pytest.mark.parametrize(
    ("config", "model_type", "tied"),
    [({}, None, None), ({"model_type": 3, "tie_word_embeddings": "yes"}, None, None), ({"model_type": "x"}, "x", None)],
)
def test_a_configuration_of_another_kind_does_no_harm(
    config: dict[str, Any], model_type: str | None, tied: bool | None, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, {"w": ("BF16", random_tensor((2,)))}, config=config)
    profile = profile_checkpoint(open_checkpoint(folder))
    assert (profile.model_type, profile.tied_embeddings) == (model_type, tied)


def test_roles_and_layers_come_from_the_names(tmp_path: Path) -> None:
    names = ["model.layers.3.self_attn.q_proj.weight", "model.embed_tokens.weight"]
    folder = write_checkpoint(tmp_path, {name: ("BF16", random_tensor((2,))) for name in names})
    profile = profile_checkpoint(open_checkpoint(folder))
    assert [(profile.by_name[name].role, profile.by_name[name].layer) for name in names] == [
        ("q_proj", 3),
        ("embed_tokens", None),
    ]


CHILD = """
import json, re, sys
from pathlib import Path
from planner.checkpoint import open_checkpoint
from planner.profile import profile_checkpoint

def peak():  # of this process alone: getrusage would count its parent's as well
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

before = peak()
tensor, = profile_checkpoint(open_checkpoint(Path(sys.argv[1])), workers=8).tensors
rows = tensor.rows and [tensor.rows.count, tensor.rows.max, tensor.columns.count, tensor.columns.max]
print(json.dumps([before, peak() - before, tensor.zeros, tensor.outliers["6"], rows]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells it")
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("BF16", (75_000, 4096)), ("BF16", (2**20, 300)), ("F32", (100_000_000,)), ("F32", (2, 2**20))],
)
def test_memory_does_not_grow_with_the_tensor(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    elements = math.prod(shape)
    size = elements * {"BF16": 2, "F32": 4}[dtype]
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)  # sparse: zeros that take no space
        file.seek(8 + len(header))
        file.write({"BF16": b"\x80\x3f\x80\x3f", "F32": b"\0\0\x80\x3f\0\0\x80\x3f"}[dtype])  # 1, 1
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    before, more, zeros, outliers, norms = json.loads(done.stdout)
    assert (zeros, outliers) == (elements - 2, 2)
    assert norms == ([shape[0], 2**0.5, shape[1], 1.0] if len(shape) > 1 else None)
    print(before, more)
    assert more < 200, f"{more} MB above the {before} MB that the imports take"
