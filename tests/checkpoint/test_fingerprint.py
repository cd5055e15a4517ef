"""The fingerprint: the same for the same weights, another for any change that a model could show."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from builders import random_tensor, write_checkpoint

from planner.checkpoint import digest_bytes, digest_file, fingerprint_checkpoint, open_checkpoint, tensor_digests

TENSORS = {f"layers.{n}.w": ("BF16", random_tensor((4, 8), seed=n)) for n in range(4)}


def fingerprint(folder: Path) -> str:
    return fingerprint_checkpoint(open_checkpoint(folder))


def test_sharding_order_and_place_do_not_matter(tmp_path: Path) -> None:
    backwards = dict(reversed(TENSORS.items()))
    found = {
        fingerprint(write_checkpoint(tmp_path / "one", TENSORS)),
        fingerprint(write_checkpoint(tmp_path / "deep" / "two", TENSORS, shards=2)),
        fingerprint(write_checkpoint(tmp_path / "four", TENSORS, shards=4)),
        fingerprint(write_checkpoint(tmp_path / "backwards", backwards)),
    }
    assert len(found) == 1
    assert found.pop().startswith("blake3:")


def test_the_metadata_of_a_shard_does_not_matter(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, TENSORS)
    before = fingerprint(folder)
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"format":"pt"', b'"format":"tf"'))
    assert fingerprint(folder) == before


def flipped(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = array.copy()
    changed[-1, -1] ^= 1
    return changed


CHANGES = {
    "one bit of a weight": TENSORS | {"layers.3.w": ("BF16", flipped(TENSORS["layers.3.w"][1]))},
    "a name": {name.replace("3", "9"): value for name, value in TENSORS.items()},
    "a shape": TENSORS | {"layers.3.w": ("BF16", TENSORS["layers.3.w"][1].reshape(8, 4))},
    "a dtype": TENSORS | {"layers.3.w": ("F16", TENSORS["layers.3.w"][1])},
    "a tensor gone": {name: value for name, value in TENSORS.items() if "3" not in name},
    "a tensor more": TENSORS | {"x": ("U8", np.zeros(0, dtype=np.uint8))},
    "two tensors exchanged": TENSORS | {"layers.0.w": TENSORS["layers.1.w"], "layers.1.w": TENSORS["layers.0.w"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_weights_changes_it(change: str, tmp_path: Path) -> None:
    before = fingerprint(write_checkpoint(tmp_path / "before", TENSORS))
    assert fingerprint(write_checkpoint(tmp_path / "after", CHANGES[change])) != before


def test_every_single_bit_counts(tmp_path: Path) -> None:
    seen = set()
    for bit in range(32):
        array = np.array([1 << bit], dtype="<u4")
        seen.add(fingerprint(write_checkpoint(tmp_path / str(bit), {"w": ("F32", array)})))
    assert len(seen) == 32


def test_the_configuration_counts_byte_for_byte(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, TENSORS)
    seen = {fingerprint(folder)}
    for text in ('{"tie_word_embeddings": true}', '{"tie_word_embeddings": false}', '{"tie_word_embeddings":false}'):
        (folder / "config.json").write_text(text)
        seen.add(fingerprint(folder))
    (folder / "config.json").unlink()
    seen.add(fingerprint(folder))
    assert len(seen) == 5


def test_no_tensor_name_can_imitate_another_line(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one", {'a", "F32': ("F32", np.zeros(1, "<u4"))})
    two = write_checkpoint(tmp_path / "two", {"a": ("F32", np.zeros(1, "<u4"))})
    newline = write_checkpoint(tmp_path / "three", {"a\nb": ("F32", np.zeros(1, "<u4"))})
    assert len({fingerprint(one), fingerprint(two), fingerprint(newline)}) == 3


def test_a_tensors_digest_is_the_blake3_of_its_bytes(tmp_path: Path) -> None:
    seen: list[int] = []
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, TENSORS, shards=2))
    digests = tensor_digests(checkpoint, progress=seen.append)
    expected = {name: "blake3:" + blake3(array.tobytes()).hexdigest() for name, (_, array) in TENSORS.items()}
    assert digests == expected
    assert sum(seen) == checkpoint.nbytes


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = hashlib.shake_128(b"x").digest(9 * 2**20)  # more than one chunk
    (tmp_path / "f").write_bytes(content)
    assert digest_file(tmp_path / "f") == digest_bytes(content) == "blake3:" + blake3(content).hexdigest()
    # The test vector of the BLAKE3 paper for no input.
    assert digest_bytes(b"") == "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_the_forms_of_a_real_checkpoint_agree(assets: Path) -> None:
    whole, sharded = (open_checkpoint(assets / name) for name in ("stories260k", "stories260k-sharded"))
    assert tensor_digests(whole) == tensor_digests(sharded)
    assert fingerprint_checkpoint(whole) == fingerprint_checkpoint(sharded)
