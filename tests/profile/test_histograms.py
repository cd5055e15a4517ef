"""Histograms beside a profile: exact, compact, readable by others, and never trusted when damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from builders import write_checkpoint, write_shard
from oracles import Array, encoded, values_of

from planner.checkpoint import TensorReader, encode_header, open_checkpoint
from planner.dtypes import NUMBERS
from planner.profile import Histograms, Profile, histograms, histograms_of, partial, profile_of, store
from planner.profile.histograms import HistogramWriter

NARROW = [name for name, dtype in NUMBERS.items() if dtype.tabulable]


def stored(name: str, shape: tuple[int, ...] = (40, 9), seed: int = 0) -> Array:
    width = 8 * NUMBERS[name].itemsize
    return np.random.default_rng(seed).integers(0, 2**width, shape, dtype=f"<u{width // 8}")


@pytest.fixture(scope="module")
def everything() -> dict[str, tuple[str, Array]]:
    """A tensor of every dtype, and odd ones."""
    tensors = {name: (name, stored(name)) for name in NUMBERS}
    tensors |= {"empty": ("BF16", stored("BF16", (0, 3))), "scalar": ("F16", stored("F16", ()))}
    return tensors | {"": ("I8", stored("I8", (5,))), "a#counts": ("BF16", encoded([1.0, np.nan], "BF16"))}


def kept(tensors: dict[str, Any], folder: Path, *, shards: int = 1) -> tuple[Profile, Path]:
    """A profile, and the folder with its histograms."""
    checkpoint = open_checkpoint(write_checkpoint(folder / "model", tensors, shards=shards))
    profile = profile_of(checkpoint, cache=folder / "cache")
    return profile, folder / "cache" / "profiles" / profile.fingerprint.removeprefix("blake3:")


def test_a_histogram_is_what_counting_finds(everything: dict[str, Any], tmp_path: Path) -> None:
    profile, folder = kept(everything, tmp_path, shards=3)
    found = Histograms(folder)
    assert set(found.names) == set(everything)
    for name, (dtype, patterns) in everything.items():
        histogram = found.of(profile.by_name[name])
        assert histogram is not None
        assert histogram.exact == (dtype in NARROW)
        whole = values_of(patterns.reshape(-1), dtype).view("<u8") if dtype[0] in "IU" else patterns.reshape(-1)
        whole = patterns.reshape(-1) if histogram.exact else whole >> np.array(8 * whole.itemsize - 16, whole.dtype)
        patterns, counts = np.unique(whole, return_counts=True)
        assert np.array_equal(histogram.patterns, patterns)
        assert np.array_equal(histogram.counts, counts)
        assert np.array_equal(np.flatnonzero(histogram.table), patterns)
        assert histogram.table.sum() == profile.by_name[name].elements
        if histogram.exact:
            assert np.array_equal(histogram.values(), values_of(patterns, dtype), equal_nan=True)


@pytest.mark.parametrize("name", ["F32", "F64", "I32", "U64"])
def test_the_values_of_a_wide_histogram_are_those_whose_other_bits_are_zero(name: str, tmp_path: Path) -> None:
    patterns = encoded(np.random.default_rng(0).normal(0, 1e6, 5000), name)
    profile, folder = kept({"w": (name, patterns)}, tmp_path)
    found = Histograms(folder).of(profile.by_name["w"])
    assert found is not None
    values = values_of(patterns, name)
    steps = 2.0**-7 if name == "F32" else 2.0**-4  # the bits of the fraction among the upper 16
    nearest = found.values()[np.abs(values[:, None] - found.values()[None, :]).argmin(axis=1)]
    assert (np.abs(values - nearest) <= steps * np.abs(values)).all()
    assert found.values().min() >= values.min()
    assert found.values().max() <= values.max()


def test_bins_hold_every_finite_element(everything: dict[str, Any], tmp_path: Path) -> None:
    profile, folder = kept(everything, tmp_path)
    found = Histograms(folder)
    drawn = 0
    for tensor in profile.tensors:
        histogram = found.of(tensor)
        for most in (1, 7, 64, 500):
            bins = histogram.bins(most)
            if bins is None:
                assert tensor.min == tensor.max or tensor.dtype == "F64"
                continue
            edges, heights = bins
            drawn += 1
            assert sum(heights) == tensor.elements - tensor.nan - tensor.inf
            assert len(edges) == len(heights) + 1 <= min(most, 2 * len(histogram.patterns)) + 1
            assert edges == sorted(edges)
            if histogram.exact:
                assert (edges[0], edges[-1]) == (tensor.min, tensor.max)
    assert drawn > 50


def test_what_has_no_bins(tmp_path: Path) -> None:
    tensors = {
        "constant": ("F16", encoded([3.0] * 5, "F16")),
        "zeros": ("BF16", encoded([0.0, -0.0], "BF16")),
        "nan": ("BF16", encoded([np.nan, np.inf], "BF16")),
        "empty": ("I8", stored("I8", (0,))),
        "endless": ("F64", encoded([-1.7e308, 1.7e308], "F64")),
    }
    profile, folder = kept(tensors, tmp_path)
    assert [Histograms(folder).of(tensor).bins() for tensor in profile.tensors] == [None] * 5


def test_the_official_library_reads_them_and_they_are_narrow(tmp_path: Path) -> None:
    tensors = {
        "few": ("BF16", stored("BF16", (200,))),
        "zeros": ("BF16", np.zeros(70_000, "<u2")),
        "many": ("I8", np.repeat(np.arange(256, dtype=np.uint8), 300)),
        "byte": ("F8_E4M3", np.repeat(np.arange(256, dtype=np.uint8), 255)),
        "": ("F32", stored("F32", (3, 3))),
    }
    profile, folder = kept(tensors, tmp_path)
    [file] = folder.rglob("histograms-*.safetensors")
    found = safetensors.numpy.load_file(file)
    assert set(found) == {f"{name}#{part}" for name in tensors for part in ("patterns", "counts")}
    kinds = {name: (found[f"{name}#patterns"].dtype, found[f"{name}#counts"].dtype) for name in tensors}
    assert kinds == {
        "few": ("uint16", "uint8"),
        "zeros": ("uint16", "uint32"),
        "many": ("uint8", "uint16"),
        "byte": ("uint8", "uint8"),
        "": ("uint16", "uint8"),
    }
    assert (found["zeros#patterns"].tolist(), found["zeros#counts"].tolist()) == ([0], [70_000])
    assert file.stat().st_size < 5000
    with safetensors.safe_open(file, "np") as opened:
        assert opened.metadata() == {"schema": "planner/histograms@1"}
    assert profile.by_name["zeros"].zeros == 70_000


def test_many_histograms_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "_FILE", 1000)
    tensors = {f"t{number}": ("BF16", stored("BF16", (100,), number)) for number in range(20)}
    profile, folder = kept(tensors, tmp_path, shards=2)
    files = list(folder.rglob("histograms-*.safetensors"))
    assert len(files) >= 6
    assert max(file.stat().st_size for file in files) < 4000
    found = Histograms(folder)
    assert sorted(found.names) == sorted(tensors)
    for tensor in profile.tensors:
        assert np.array_equal(found.of(tensor).patterns, np.unique(tensors[tensor.name][1]))


def test_counts_beyond_32_bits(tmp_path: Path) -> None:
    counts = np.zeros(2**16, np.int64)
    counts[[3, 0x8001]] = 2**40, 1
    writer = HistogramWriter(tmp_path)
    writer.add("w", counts)
    writer.flush()
    found = safetensors.numpy.load_file(tmp_path / "histograms-00000.safetensors")
    assert (found["w#counts"].dtype, found["w#counts"].tolist()) == ("uint64", [2**40, 1])


# What is damaged, foreign, stale or gone is passed over


def rewritten(file: Path, **changed: tuple[str, Array]) -> None:
    """The same file with other arrays in it."""
    arrays = safetensors.numpy.load_file(file)
    tensors = {name: (f"U{8 * array.itemsize}", array.shape, array.tobytes()) for name, array in arrays.items()}
    for part, (dtype, array) in changed.items():
        tensors[f"w#{part}"] = (dtype, array.shape, array.tobytes())
    write_shard(file, tensors, metadata={"schema": "planner/histograms@1"})


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def scribbled(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 0x55  # of the counts
    file.write_bytes(raw)


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def of_another_program(file: Path) -> None:
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(arrays, file, metadata={"schema": "theirs/histograms@1"})


def three(kind: str, *numbers: int) -> tuple[str, Array]:
    return f"U{8 * int(kind[1])}", np.array(numbers, f"<{kind}")


GOOD = encoded([1.0, 1.0, 2.0, -3.0, np.nan], "BF16")  # patterns 3f80 twice, 4000, 7fc0, c040
DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(100)),
    "gone": lambda file: file.unlink(),
    "a folder": as_folder,
    "no header": lambda file: file.write_bytes(b"\xff" * 64),
    "a flipped bit": scribbled,
    "another program's": of_another_program,
    "without patterns": lambda file: write_shard(
        file, {"w#counts": ("U8", (4,), b"\2\1\1\1")}, metadata={"schema": "planner/histograms@1"}
    ),
    "floats": lambda file: rewritten(file, counts=("F16", np.zeros(4, "<u2"))),
    "bfloats": lambda file: rewritten(file, counts=("BF16", np.zeros(4, "<u2"))),
    "booleans": lambda file: rewritten(file, counts=("BOOL", np.ones(4, "<u1"))),
    "8-bit floats": lambda file: rewritten(file, patterns=("F8_E4M3", np.ones(4, "<u1"))),
    "patterns out of range": lambda file: rewritten(file, patterns=three("u4", 0x3F80, 0x4000, 0x7FC0, 2**31)),
    "patterns in disorder": lambda file: rewritten(file, patterns=three("u2", 0x4000, 0x3F80, 0x7FC0, 0xC040)),
    "patterns twice": lambda file: rewritten(file, patterns=three("u2", 0x3F80, 0x3F80, 0x7FC0, 0xC040)),
    "more patterns than counts": lambda file: rewritten(file, patterns=three("u2", 1, 2, 3, 4, 5)),
    "another number of elements": lambda file: rewritten(file, counts=three("u1", 2, 1, 1, 2)),
    "counts beyond reason": lambda file: rewritten(file, counts=three("u8", 2, 1, 2, 2**64 - 1)),
    "other values": lambda file: rewritten(file, patterns=three("u2", 0x3F80, 0x4040, 0x7FC0, 0xC040)),
    "another number of NaN": lambda file: rewritten(file, counts=three("u1", 1, 1, 2, 1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_no_histogram_and_no_error(damage: str, tmp_path: Path) -> None:
    profile, folder = kept({"w": ("BF16", GOOD)}, tmp_path)
    [tensor] = profile.tensors
    found = Histograms(folder).of(tensor)
    assert found is not None
    assert (found.patterns.tolist(), found.counts.tolist()) == ([0x3F80, 0x4000, 0x7FC0, 0xC040], [2, 1, 1, 1])
    [file] = folder.rglob("histograms-*.safetensors")
    opened_before = Histograms(folder)
    DAMAGE[damage](file)
    assert Histograms(folder).of(tensor) is None
    if damage in ("cut", "empty", "gone", "a folder"):
        assert opened_before.of(tensor) is None


def test_an_untouched_file_beside_a_damaged_one_is_read(tmp_path: Path) -> None:
    profile, folder = kept(dict.fromkeys("ab", ("BF16", GOOD)), tmp_path, shards=2)
    cut(next(folder.rglob("histograms-*.safetensors")))
    assert len([tensor for tensor in profile.tensors if Histograms(folder).of(tensor)]) == 1


def test_no_folder_no_histograms(tmp_path: Path) -> None:
    profile, _ = kept({"w": ("BF16", GOOD)}, tmp_path)
    found = Histograms(tmp_path / "nowhere")
    assert (found.names, found.of(profile.tensors[0])) == ([], None)
    (tmp_path / "out").mkdir()
    assert found.copy_to(tmp_path / "out") == 0


def test_copying_replaces_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "_FILE", 300)
    many = {f"t{number}": ("BF16", stored("BF16", (100,), number)) for number in range(6)}
    before, folder = kept(many, tmp_path / "before", shards=2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "histograms-of-mine.safetensors").write_bytes(b"precious")
    first = Histograms(folder)
    assert first.copy_to(out) == len(first.files) > 2
    assert all(Histograms(out).of(tensor) for tensor in before.tensors)
    assert Histograms(out).copy_to(out) == len(first.files), "onto themselves"
    assert all(Histograms(out).of(tensor) for tensor in before.tensors)
    after, folder = kept({"w": ("BF16", GOOD)}, tmp_path / "after")
    assert Histograms(folder).copy_to(out) == 1
    assert Histograms(out).names == ["w"]
    assert Histograms(out).of(after.tensors[0]) is not None
    assert (out / "histograms-of-mine.safetensors").read_bytes() == b"precious"


def test_a_changed_shard_leaves_no_histogram_of_its_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (store, partial):
        monkeypatch.setattr(module, "SETTLED_NS", -(10**9))
    tensors = {f"t{number}": ("BF16", stored("BF16", (30, 2), number)) for number in range(2)}
    folder = write_checkpoint(tmp_path / "model", tensors, shards=2)
    read_into = TensorReader.read_into

    def interrupted(reader: TensorReader, buffer: memoryview, tensor: Any, offset: int) -> None:
        if tensor.name == "t1":
            raise KeyboardInterrupt
        read_into(reader, buffer, tensor, offset)

    monkeypatch.setattr(TensorReader, "read_into", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile_of(open_checkpoint(folder), cache=tmp_path / "cache")
    monkeypatch.setattr(TensorReader, "read_into", read_into)
    tensors["t0"] = ("BF16", stored("BF16", (30, 2), 7))
    write_checkpoint(folder, tensors, shards=2)
    profile = profile_of(open_checkpoint(folder), cache=tmp_path / "cache")
    found = histograms_of(profile, cache=tmp_path / "cache")
    assert len(found.files) == 2
    for tensor in profile.tensors:
        assert np.array_equal(found.of(tensor).patterns, np.unique(tensors[tensor.name][1]))


def test_a_shard_that_vanishes_while_it_is_profiled_is_no_accident_of_the_cache(tmp_path: Path) -> None:
    tensors = {"w": ("BF16", GOOD)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", tensors))
    shard, run = checkpoint.shards[0], partial.PartialRun(tmp_path / "cache", checkpoint, spectra=False, force=False)
    assert run.kept(shard) is None
    (tmp_path / "model" / shard.name).unlink()
    run.keep(shard, [])
    assert run.kept(shard) is None
    run.finish(tmp_path / "target", b"{}")
    assert not (tmp_path / "target").exists()


def test_the_header_is_that_of_the_format(tmp_path: Path) -> None:
    _, folder = kept({"w": ("BF16", GOOD)}, tmp_path)
    [file] = folder.rglob("histograms-*.safetensors")
    raw = file.read_bytes()
    listed = [("w#patterns", "U16", (4,)), ("w#counts", "U8", (4,))]
    assert raw.startswith(encode_header(listed, {"schema": "planner/histograms@1"}))
    length = int.from_bytes(raw[:8], "little")
    assert list(json.loads(raw[8 : 8 + length])) == ["__metadata__", "w#patterns", "w#counts"]
