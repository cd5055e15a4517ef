"""Arrays that a plan names, from files that strangers wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from builders import write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.checkpoint.fingerprint import digest_file
from planner.edits.arrays import read_array
from planner.errors import ArrayUnusable, PlannerError
from planner.operations.numbers import ArrayFile

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
Array = np.ndarray[Any, Any]


def read(folder: Path, file: str = "d.safetensors", array: str = "d", **more: Any) -> tuple[Array, Any]:
    named = ArrayFile(file=file, array=array, digest=more.pop("digest", None))
    return read_array(named, folder, **{"tensor": "model.layers.3.mlp.down_proj.weight", "layer": 3, **more})


def refused(folder: Path, *arguments: str, **more: Any) -> str:
    with pytest.raises(ArrayUnusable) as caught:
        read(folder, *arguments, **more)
    assert caught.value.exit_status == 3
    assert caught.value.hint
    assert caught.value.message.isprintable()
    return caught.value.message


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (1,)])
def test_numbers_are_what_torch_reads(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, dtype=torch.float64).to(DTYPES[name])
    metadata = {"made_by": "a probe", "long": "x" * 9000}
    safetensors.torch.save_file({"other": torch.zeros(3), "d": tensor}, tmp_path / "d.safetensors", metadata)
    values, provenance = read(tmp_path)
    assert values.dtype == np.float64
    assert np.array_equal(values, tensor.double().numpy())
    assert (provenance.file, provenance.array, provenance.dtype) == ("d.safetensors", "d", name)
    assert provenance.shape == shape
    assert provenance.digest == digest_file(tmp_path / "d.safetensors")
    assert provenance.metadata == {"made_by": "a probe", "long": "x" * 500}
    assert np.array_equal(read(tmp_path, digest=provenance.digest)[0], values)
    assert "not the file" in refused(tmp_path, digest="blake3:" + "0" * 64)


def test_a_name_may_depend_on_the_tensor_and_its_layer(tmp_path: Path) -> None:
    arrays = {f"direction.{layer}": torch.full((2,), float(layer)) for layer in range(5)}
    arrays["model.layers.3.mlp.down_proj.weight.u"] = torch.ones(2)
    safetensors.torch.save_file(arrays, tmp_path / "d.safetensors")
    assert read(tmp_path, array="direction.{layer}")[0].tolist() == [3, 3]
    assert read(tmp_path, array="direction.{layer}", layer=0)[0].tolist() == [0, 0]
    assert read(tmp_path, array="{tensor}.u")[1].array == "model.layers.3.mlp.down_proj.weight.u"
    assert "in none" in refused(tmp_path, array="direction.{layer}", layer=None)
    assert "'direction." in refused(tmp_path, array="direction.{layer}", layer=9)
    assert "no array '{0.__class__}'" in refused(tmp_path, array="{0.__class__}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", DTYPES)
def test_what_is_not_finite_is_refused(tmp_path: Path, name: str, value: float) -> None:
    safetensors.torch.save_file({"d": torch.tensor([1, value]).to(DTYPES[name])}, tmp_path / "d.safetensors")
    assert "NaN or an infinity" in refused(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(3, dtype=torch.int32), "I32"),
        (torch.ones(3, dtype=torch.float8_e4m3fn), "F8_E4M3"),
        (torch.tensor(1.0), "a vector or a matrix"),
        (torch.ones(2, 2, 2), "a vector or a matrix"),
        (torch.ones(0), "a vector or a matrix"),
    ],
)
def test_what_is_no_vector_or_matrix_of_floats_is_refused(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    safetensors.torch.save_file({"d": tensor}, tmp_path / "d.safetensors")
    assert message in refused(tmp_path)


def test_a_giant_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    write_shard(path, {"d": ("F16", (1,), b"\0\0")})
    text = b'{"d":{"dtype":"F16","shape":[300000000],"data_offsets":[0,600000000]}}  '
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 600_000_000)  # sparse
    assert "300,000,000 elements" in refused(tmp_path)


def test_the_path_stays_in_the_plan_s_folder(tmp_path: Path) -> None:
    plan, outside = tmp_path / "plan", tmp_path / "outside"
    for folder in (plan / "sub", outside):
        folder.mkdir(parents=True)
        safetensors.torch.save_file({"d": torch.ones(2)}, folder / "d.safetensors")
    assert read(plan, "sub/d.safetensors")[0].tolist() == [1, 1]
    assert read(plan, str(outside / "d.safetensors"))[0].tolist() == [1, 1]
    (plan / "link.safetensors").symlink_to(outside / "d.safetensors")
    (plan / "folder").symlink_to(outside)
    (plan / "inner.safetensors").symlink_to("sub/d.safetensors")
    (plan / "loop").symlink_to("loop")
    assert read(plan, "inner.safetensors")[0].tolist() == [1, 1]
    assert "climbs" in refused(plan, "../outside/d.safetensors")
    assert "climbs" in refused(plan, "sub/../../outside/d.safetensors")
    assert "link leads out" in refused(plan, "link.safetensors")
    assert "link leads out" in refused(plan, "folder/d.safetensors")
    assert refused(plan, "loop")
    assert "No such file" in refused(plan, "missing.safetensors")
    assert "not a regular file" in refused(plan, "sub")
    os.mkfifo(plan / "fifo")
    assert "not a regular file" in refused(plan, "fifo")
    for name in ("a\0b", "a\nb", "\u202eb"):
        assert "cannot be printed" in refused(plan, name)
    assert refused(plan, "x" * 1000)


def test_a_plan_s_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    safetensors.torch.save_file({"d": torch.ones(2)}, tmp_path / "real" / "d.safetensors")
    (tmp_path / "plan").symlink_to("real")
    assert read(tmp_path / "plan")[0].tolist() == [1, 1]


def test_a_pickle_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    torch.save({"d": torch.ones(2)}, tmp_path / "d.safetensors")
    assert "pickle" in refused(tmp_path)
    safetensors.torch.save_file({"d": torch.ones(200)}, tmp_path / "d.safetensors")
    os.truncate(tmp_path / "d.safetensors", 500)
    assert "500 bytes" in refused(tmp_path)
    (tmp_path / "d.safetensors").write_bytes(b"")
    assert refused(tmp_path)


def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.edits import sidecar

    safetensors.torch.save_file({"d": torch.ones(2)}, tmp_path / "d.safetensors")

    def hashing(descriptor: int) -> str:
        (tmp_path / "new").write_bytes((tmp_path / "d.safetensors").read_bytes())
        (tmp_path / "new").replace(tmp_path / "d.safetensors")
        return "blake3:" + "0" * 64

    monkeypatch.setattr(sidecar, "_digest", hashing)
    assert "changed while it was read" in refused(tmp_path)


@given(where=st.integers(0, 400), bits=st.integers(1, 255), data=st.binary(max_size=60))
@settings(deadline=None, max_examples=200)
def test_no_damage_does_worse_than_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, where: int, bits: int, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "damaged.safetensors"
    safetensors.torch.save_file({"d": torch.ones(40), "e": torch.zeros(3, 3)}, path, {"by": "a probe"})
    whole = bytearray(path.read_bytes())
    whole[where % len(whole)] ^= bits
    for content in (bytes(whole), bytes(whole[: where % len(whole)]) + data):
        path.write_bytes(content)
        try:
            values, _ = read(folder, "damaged.safetensors")
        except PlannerError as error:
            assert isinstance(error, ArrayUnusable)  # noqa: PT017 - either outcome is right
        else:
            assert np.isfinite(values).all()
