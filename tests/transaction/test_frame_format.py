"""The format of frames: what is written is what is written down, alike on every machine; and frames that lie."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zstandard
from edited_weights import EDITS, ODD, STORAGE, bytes_of, edited, rounded, table_of, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dtypes import BITS
from planner.transaction.undo import predicting_kernels as kernels
from planner.transaction.undo.frames import EQUAL, PACKED, PREDICTED, RANKS, RANKS_COMPRESSED, RAW, TABLE, Framing
from planner.transaction.undo.residuals import PIECE, Coding


@pytest.fixture(scope="module")
def trained() -> Any:
    """All weights of the bundled model, float32 [637, 1024]: two and a half pieces of BF16."""
    values = weights_of(Path(__file__).parents[2] / "examples" / "tiny-model", "BF16")
    return values[: values.size // 1024 * 1024].reshape(-1, 1024)


# The format


def test_a_frame_reads_as_it_is_written_down(trained: Any) -> None:
    """A second decoder, of nothing but the text in `frames` and `predicting`."""
    values = trained.reshape(-1)[:600_000].reshape(-1, 1000)  # the second piece begins in the middle of a row
    edits = ("one factor", "factors by column", "factors and offsets by row", "project_out of rows", "other values")
    for edit, dtype in itertools.product(edits, ("BF16", "F16", "F32", "F64")):
        old, new = (side[: 2 * PIECE] for side in edited(values, edit, dtype))
        kind = np.dtype(f"<u{BITS[dtype] // 8}")
        old.view(kind)[: 997 * 20 : 997] = np.resize(np.array(ODD[BITS[dtype]], kind), 20)
        framing = Framing(dtype, values.shape)
        for begin in (0, PIECE):
            wanted, other = new[begin : begin + PIECE], old[begin : begin + PIECE]
            frame = framing.encode(wanted, other, begin)
            assert frame[0] in (PREDICTED, PACKED)
            with np.errstate(all="ignore"):
                read = by_the_text(frame, other, begin, dtype, values.shape[1])
            assert np.array_equal(read, wanted), (edit, dtype, begin)


def by_the_text(frame: bytes, other: Any, begin: int, dtype: str, length: int) -> Any:
    """Decode a predicted or packed frame of floats."""
    width = BITS[dtype] // 8
    kind = np.dtype(f"<u{width}")
    data = frame[1:]

    def stream(size: int) -> Any:
        nonlocal data
        (taken,) = struct.unpack_from("<I", data)
        content, data = data[4 : 4 + taken], data[4 + taken :]
        return np.frombuffer(content if taken == size else zstandard.decompress(content), np.uint8)

    def planes(count: int, of: Any) -> Any:
        integers = np.zeros(count, f"<u{np.dtype(of).itemsize}")
        for number in range(integers.itemsize):
            integers |= stream(count).astype(integers.dtype) << integers.dtype.type(8 * number)
        return integers.view(of)

    count = other.size // width
    if frame[0] == PACKED:
        return bytes_of(planes(count, kind))
    predictor, layout, different, gaps = struct.unpack_from("<BBII", data)
    data = data[10:]
    places = np.arange(begin // width, begin // width + count)
    row, column = places // length - places[0] // length, places % length
    x = other.view(STORAGE[dtype]).astype(np.float64)
    stored = np.float64 if dtype == "F64" else np.float32
    rows = int(row[-1]) + 1
    if predictor > 6:
        numbers = planes((predictor - 6) * (rows + length), stored).astype(np.float64)
        u, v = np.split(numbers, [(predictor - 6) * rows])
        for k in range(predictor - 6):
            x = x + u.reshape(-1, rows)[k][row] * v.reshape(-1, length)[k][column]
    elif predictor:
        line, lines = (row, rows) if predictor < 4 else (column, length)
        a = planes(lines * (1 + (predictor in (3, 6))), stored).astype(np.float64)
        a, b = a[:lines], a[lines:]
        x = a[line] * x if predictor in (1, 4) else x / a[line] if predictor in (2, 5) else a[line] * x + b[line]
    if dtype != "F64":
        x = x.astype(np.float32)
    predicted = x.astype(STORAGE[dtype]).view(kind)
    predicted = np.where(np.isnan(x), other.view(kind), predicted)
    if layout:
        z = np.zeros(count, kind)
        if different:
            steps = stream(gaps)
            behind = np.cumsum(steps + (steps < 255).astype(np.int64))
            z[behind[steps < 255] - 1] = planes(different, kind) + kind.type(1)
    else:
        z = planes(count, kind)
    top = kind.type(1 << (8 * width - 1))
    ordered = np.where(predicted & top, ~predicted, predicted | top)
    wanted = ordered + np.where(z & kind.type(1), ~(z >> kind.type(1)), z >> kind.type(1))
    return bytes_of(np.where(wanted & top, wanted & ~top, ~wanted).astype(kind))


def test_rounding_to_16_bits_is_that_of_numpy() -> None:
    """At every place where it could differ: the middles between neighbours, and one bit beside them."""
    generator = np.random.default_rng(0)
    middles = np.arange(2**20, dtype=np.uint64) << np.uint64(12)
    bits = np.concatenate([middles, middles + 1, middles - 1, generator.integers(0, 2**32, 10**6, np.uint64)])
    bits = bits.astype(np.uint32)
    values, found = bits.view(np.float32), np.empty(bits.size, np.uint16)
    for half, storage in ((True, np.float16), (False, ml_dtypes.bfloat16)):
        kernels.round_16(bits, found, half)
        with np.errstate(all="ignore"):
            meant = values.astype(storage)
        real = ~np.isnan(values)
        assert np.array_equal(found[real], meant.view(np.uint16)[real])
        assert np.isnan(found.view(storage)[~real].astype(np.float32)).all()


def test_another_machine_reads_the_same(trained: Any, tmp_path: Path) -> None:
    """An interpreter without this one's vector units: its numpy and its numba know the plainest processor."""
    frames: dict[str, Any] = {}
    for number, (edit, dtype, *_) in enumerate(EDITS):
        old, new = edited(trained, edit, dtype)
        old, new = old[:PIECE], new[:PIECE]
        frame = Framing(dtype, trained.shape).encode(new, old, 0)
        frames |= {f"{number}/{dtype}/new": new, f"{number}/{dtype}/old": old}
        frames[f"{number}/{dtype}/frame"] = np.frombuffer(frame, np.uint8)
    np.savez(tmp_path / "frames.npz", **frames)
    program = f"""
import numpy as np
from planner.transaction.undo.frames import Framing
file = np.load({str(tmp_path / "frames.npz")!r})
for name in file:
    number, dtype, what = name.split("/")
    if what == "frame":
        old, new = file[f"{{number}}/{{dtype}}/old"], file[f"{{number}}/{{dtype}}/new"]
        out = np.empty_like(new)
        Framing(dtype, {trained.shape!r}).decode(file[name].tobytes(), old, 0, out)
        assert np.array_equal(out, new), name
print("all", len(file.files) // 3)
"""
    environment = dict(os.environ, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    features = np._core._multiarray_umath.__cpu_dispatch__
    environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(features)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"all {len(EDITS)}", done.stderr


# Frames that lie


def some_frames() -> list[tuple[Framing, bytes, Any, Any]]:
    """A short frame of each mode, with what it is decoded from and to."""
    generator = np.random.default_rng(9)
    values = generator.standard_normal((12, 60)).astype(np.float32)
    coding, old = table_of("BF16", 0.7), rounded(values, "BF16")
    new = bytes_of(coding.table[old.view(np.uint16)])
    zero = Coding(np.zeros(2**16, np.uint16))
    repeated = np.tile(old[:8], old.size // 8)
    plain = Framing("BF16", (12, 60))
    cases = [
        (Framing("BF16", (12, 60), coding), old, new),
        (Framing("BF16", (12, 60), coding, forwards=True), new, old),
        (Framing("BF16", (12, 60), zero), repeated, np.zeros_like(old)),
        (plain, old, new),
        (plain, rounded(values + values[:1] * values[:, :1] / 9, "BF16"), old),
        (plain, rounded(values * np.linspace(0.9, 1.1, 60), "BF16"), old),
        (plain, rounded(np.round(values), "BF16"), old),
        (plain, old, generator.integers(0, 256, old.size).astype(np.uint8)),
        (plain, generator.integers(0, 256, old.size).astype(np.uint8), old),
        (plain, old, old),
    ]
    return [(framing, framing.encode(wanted, other, 0), other, wanted) for framing, wanted, other in cases]


def test_every_mode_is_among_those_that_are_damaged() -> None:
    assert {frame[0] for _, frame, _, _ in some_frames()} >= {EQUAL, RANKS, TABLE, PREDICTED, PACKED, RAW}


def test_a_damaged_frame_is_refused_or_gives_other_bytes() -> None:
    """Cut anywhere, longer, and with each of its bits the other way round."""
    for framing, frame, other, wanted in some_frames():
        decoded = np.empty_like(wanted)
        cut = [frame[:size] for size in range(len(frame))] + [frame + b"\0", frame * 2]
        for damaged in cut:
            with pytest.raises(ValueError):
                framing.decode(damaged, other, 0, decoded)
        for place in range(len(frame)):
            for bit in range(8):
                damaged = bytearray(frame)
                damaged[place] ^= 1 << bit
                try:
                    framing.decode(bytes(damaged), other, 0, decoded)
                except ValueError:
                    continue


@given(st.integers(0, 7), st.binary(max_size=200), st.integers(0, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_give_bytes(mode: int, payload: bytes, size: int, seed: int) -> None:
    given = np.random.default_rng(seed).integers(0, 256, 2 * size).astype(np.uint8)
    for framing in (Framing("BF16", (3, 5)), Framing("BF16", (3, 5), table_of("BF16", 0.7))):
        try:
            framing.decode(bytes([mode]) + payload, given, 0, np.empty_like(given))
        except ValueError:
            continue


def test_differences_that_are_not_as_many_as_said_are_refused() -> None:
    given = np.zeros(200, np.uint8)
    framing = Framing("U8", (200,))

    def frame(gaps: bytes, values: bytes) -> bytes:
        streams = [struct.pack("<I", len(part)) + part for part in (gaps, values)]
        return bytes([PREDICTED]) + struct.pack("<BBII", 0, 1, len(values), len(gaps)) + b"".join(streams)

    decoded = np.empty_like(given)
    framing.decode(frame(b"\x02\x00", b"\x01\x00"), given, 0, decoded)
    assert decoded.tolist()[:5] == [0, 0, 1, 255, 0]  # differences of 2 and 1 in zigzag, less one
    for gaps, values in ((b"\x02", b"\x01\x00"), (b"\x02\x00", b"\x01"), (b"\x02\xc8", b"\x01\x00"), (b"", b"\x01")):
        with pytest.raises(ValueError):
            framing.decode(frame(gaps, values), given, 0, decoded)


def test_no_frame_takes_more_memory_than_its_piece() -> None:
    """Frames that promise gigabytes, in each place where something is compressed or counted."""
    much = zstandard.ZstdCompressor(level=19).compress(bytes(10**8))
    said = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + much[9:]
    untold = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10**8))
    given = np.zeros(2**16, np.uint8)
    framing = Framing("BF16", (8, 4096), Coding(np.zeros(2**16, np.uint16)))
    long = Framing("BF16", (8, 10**15))
    frames = []
    for bomb in (much, said, untold):
        stream = struct.pack("<I", len(bomb)) + bomb
        frames += [bytes([RANKS_COMPRESSED]) + bomb, bytes([PACKED]) + stream * 2]
        for predictor in range(24):
            frames += [
                bytes([PREDICTED]) + struct.pack("<BBII", predictor, layout, 9, 9) + stream * 3 for layout in (0, 1)
            ]
    frames += [bytes([PREDICTED]) + struct.pack("<BBII", 0, 1, 2**32 - 1, 2**32 - 1) + bytes(99)]
    output = np.empty_like(given)
    for frame in frames[:3]:
        with pytest.raises(ValueError):
            framing.decode(frame, given, 0, output)
    tracemalloc.start()
    for frame in frames:
        for framing_ in (framing, long):
            with pytest.raises(ValueError):
                framing_.decode(frame, given, 0, output)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * given.size
