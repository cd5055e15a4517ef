"""Kept profiles: a second call reads no weight, a changed file is noticed, a broken cache costs only time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from builders import random_tensor, write_checkpoint

from planner.checkpoint import Checkpoint, Tensor, TensorReader, open_checkpoint
from planner.profile import Profile, histograms_of, partial, profile_of, profiler, store
from planner.profile.store import cache_folder

TENSORS = {f"layers.{n}.w": ("BF16", random_tensor((4, 8), seed=n)) for n in range(3)}


class WeightRead(Exception):
    """A weight was read where none should have been."""


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise WeightRead

    monkeypatch.setattr(Checkpoint, "chunks", refuse)
    monkeypatch.setattr(TensorReader, "read_into", refuse)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be kept a second after nothing, so that a test need not wait."""
    for module in (store, partial):
        monkeypatch.setattr(module, "SETTLED_NS", -(10**9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", TENSORS, shards=2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def profiled(folder: Path, cache: Path, *, force: bool = False) -> Profile:
    return profile_of(open_checkpoint(folder), cache=cache, force=force)


@pytest.mark.usefixtures("settled")
def test_the_second_call_reads_no_weight(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = profiled(folder, cache)
    forbid_reading(monkeypatch)
    assert profiled(folder, cache) == first


@pytest.mark.usefixtures("settled")
def test_force_reads_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = profiled(folder, cache)
    assert profiled(folder, cache, force=True).tensors == first.tensors
    forbid_reading(monkeypatch)
    with pytest.raises(WeightRead):
        profiled(folder, cache, force=True)


def flip_a_bit(shard: Path) -> None:
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("hide", [False, True], ids=["openly", "with its old time"])
def test_a_changed_shard_is_noticed(hide: bool, folder: Path, cache: Path) -> None:
    first = profiled(folder, cache)
    shard = folder / "model-00001-of-00002.safetensors"
    times = shard.stat()
    flip_a_bit(shard)
    if hide:
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert profiled(folder, cache).fingerprint != first.fingerprint


@pytest.mark.usefixtures("settled")
def test_a_shard_replaced_by_another_of_the_same_size_is_noticed(folder: Path, cache: Path) -> None:
    first = profiled(folder, cache)
    shard = folder / "model-00001-of-00002.safetensors"
    other = folder / "new"
    shutil.copy2(shard, other)
    flip_a_bit(other)
    os.utime(other, ns=(shard.stat().st_atime_ns, shard.stat().st_mtime_ns))
    other.replace(shard)
    assert profiled(folder, cache).fingerprint != first.fingerprint


@pytest.mark.usefixtures("settled")
def test_a_changed_or_removed_configuration_is_noticed(folder: Path, cache: Path) -> None:
    seen = {profiled(folder, cache).fingerprint}
    (folder / "config.json").write_text('{"model_type": "llama"}')
    changed = profiled(folder, cache)
    assert changed.model_type == "llama"
    (folder / "config.json").unlink()
    seen |= {changed.fingerprint, profiled(folder, cache).fingerprint}
    assert len(seen) == 3


@pytest.mark.usefixtures("settled")
def test_a_file_changed_while_it_was_profiled_is_not_kept(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile_checkpoint = profiler.profile_checkpoint

    def change_after(checkpoint: Checkpoint, **options: object) -> Profile:
        profile = profile_checkpoint(checkpoint)
        flip_a_bit(folder / "model-00001-of-00002.safetensors")
        return profile

    monkeypatch.setattr(profiler, "profile_checkpoint", change_after)
    stale = profiled(folder, cache)
    assert not (cache / "profiles").exists()
    assert not (cache / "seen").exists()
    monkeypatch.setattr(profiler, "profile_checkpoint", profile_checkpoint)
    assert profiled(folder, cache).fingerprint != stale.fingerprint


def test_a_file_written_a_moment_ago_is_not_recognised(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiled(folder, cache)
    assert not (cache / "seen").exists()
    forbid_reading(monkeypatch)
    with pytest.raises(WeightRead):
        profiled(folder, cache)


@pytest.mark.usefixtures("settled")
def test_two_folders_of_the_same_weights_keep_their_own_names(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    one, two = profiled(folder, cache), profiled(twin, cache)
    assert (one.name, two.name) == ("model", "twin")
    assert one.fingerprint == two.fingerprint
    forbid_reading(monkeypatch)
    assert [profiled(folder, cache).name, profiled(twin, cache).name] == ["model", "twin"]
    (tmp_path / "link").symlink_to(folder)
    assert profiled(tmp_path / "link", cache).name == "link"


@pytest.mark.usefixtures("settled")
def test_a_folder_whose_name_is_not_text_is_profiled_and_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), TENSORS)
    first = profiled(folder, cache)
    forbid_reading(monkeypatch)
    assert profiled(folder, cache) == first


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda _: b"",
    "zeros": lambda text: bytes(len(text)),
    "not text": lambda text: b"\xff" + text,
    "another document": lambda _: b"{}",
    "of another version": lambda text: text.replace(b'"planner_version":"', b'"planner_version":"0.0.0-'),
    "of other weights": lambda text: text.replace(b'"fingerprint":"blake3:', b'"fingerprint":"blake3:0'),
    "leading elsewhere": lambda _: b"../../../../etc/passwd",
    "too long for a name": lambda _: b"a" * 5000,
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("part", ["seen", "profiles"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_cache_costs_time_and_never_the_result(part: str, damage: str, folder: Path, cache: Path) -> None:
    first = profiled(folder, cache)
    victim = next((cache / part).iterdir())
    victim = victim / "profile.json" if part == "profiles" else victim
    before = victim.read_bytes()
    victim.write_bytes(DAMAGE[damage](before))
    again = profiled(folder, cache)
    assert (again.fingerprint, again.tensors) == (first.fingerprint, first.tensors)


@pytest.mark.usefixtures("settled")
def test_a_broken_cache_is_mended(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiled(folder, cache)
    (victim,) = (cache / "profiles").glob("*/profile.json")
    victim.write_bytes(b"")
    mended = profiled(folder, cache)
    forbid_reading(monkeypatch)
    assert profiled(folder, cache) == mended


@pytest.mark.usefixtures("settled")
def test_what_another_version_kept_is_computed_anew(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiled(folder, cache)
    monkeypatch.setattr(store, "__version__", "999.0")
    forbid_reading(monkeypatch)
    with pytest.raises(WeightRead):
        profiled(folder, cache)


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_does_no_harm(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    first = profiled(folder, cache)
    assert profiled(folder, cache).tensors == first.tensors
    assert cache.is_file()


def test_the_cache_is_where_the_environment_says(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder({"PLANNER_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert cache_folder({"PLANNER_CACHE": "~/c"}) == Path("/home/someone/c")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/planner")
    assert cache_folder({"XDG_CACHE_HOME": ""}) == cache_folder({}) == Path("/home/someone/.cache/planner")
    for module in (store, partial):
        monkeypatch.setattr(module, "SETTLED_NS", -(10**9))
    monkeypatch.setenv("PLANNER_CACHE", str(tmp_path / "named"))
    profile_of(open_checkpoint(folder))
    assert (tmp_path / "named" / "profiles").is_dir()


# An interrupted run goes on after the last shard it finished


class Watched:
    """Counts the bytes read, and can be made to fail after so many of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes_read = 0
        self.fail_after: int | None = None
        read_into = TensorReader.read_into

        def watched(reader: TensorReader, buffer: memoryview, tensor: Tensor, offset: int) -> None:
            if self.fail_after is not None and self.bytes_read >= self.fail_after:
                raise KeyboardInterrupt
            self.bytes_read += len(buffer)
            read_into(reader, buffer, tensor, offset)

        monkeypatch.setattr(TensorReader, "read_into", watched)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("after", [64, 128, 192])
def test_an_interrupted_run_reads_only_the_shards_it_had_not_finished(
    after: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"layers.{n}.w": ("BF16", random_tensor((4, 8), seed=n)) for n in range(4)}
    folder = write_checkpoint(tmp_path / "four", tensors, shards=4)
    expected = profile_of(open_checkpoint(folder), cache=tmp_path / "elsewhere")
    watched = Watched(monkeypatch)
    watched.fail_after = after
    with pytest.raises(KeyboardInterrupt):
        profile_of(open_checkpoint(folder), cache=cache, workers=1)
    watched.fail_after, watched.bytes_read = None, 0
    seen: list[int] = []
    resumed = profile_of(open_checkpoint(folder), cache=cache, progress=seen.append)
    assert watched.bytes_read == 256 - after
    assert sum(seen) == 256  # what is known already counts as done
    assert (resumed.fingerprint, resumed.tensors) == (expected.fingerprint, expected.tensors)
    assert not list((cache / "partial").iterdir())
    assert set(histograms_of(resumed, cache=cache).names) == set(tensors)


@pytest.mark.usefixtures("settled")
def test_a_shard_that_changed_after_the_interruption_is_read_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    watched.fail_after = 128
    with pytest.raises(KeyboardInterrupt):
        profile_of(open_checkpoint(folder), cache=cache, workers=1)
    watched.fail_after, watched.bytes_read = None, 0
    flip_a_bit(folder / "model-00001-of-00002.safetensors")
    resumed = profiled(folder, cache)
    assert watched.bytes_read == 192
    assert resumed.fingerprint == profile_of(open_checkpoint(folder), cache=cache / "other").fingerprint


@pytest.mark.usefixtures("settled")
def test_force_forgets_an_interrupted_run(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.fail_after = 128
    with pytest.raises(KeyboardInterrupt):
        profile_of(open_checkpoint(folder), cache=cache, workers=1)
    watched.fail_after, watched.bytes_read = None, 0
    profiled(folder, cache, force=True)
    assert watched.bytes_read == 192


@pytest.mark.usefixtures("settled")
def test_a_profile_without_spectra_does_not_answer_for_one_with(folder: Path, cache: Path) -> None:
    assert profiled(folder, cache).tensors[0].spectrum is None
    with_spectra = profile_of(open_checkpoint(folder), cache=cache, spectra=True)
    assert with_spectra.tensors[0].spectrum is not None
    assert profiled(folder, cache) == with_spectra  # and the other way round it does
