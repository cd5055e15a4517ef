"""Every way in which apply says no, and that nothing at all has changed then: no bit, no mode, no leftover."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint
from small_disks import AS_ROOT, NOBODY, as_nobody, tmpfs
from snapshots import approved_plan, change, everything, files, litter, scale, small_model, stored

from planner import fsio
from planner.errors import (
    LedgerDamaged,
    NoSpace,
    OutputExists,
    PlannerError,
    PlanNotApproved,
    PlanRefused,
    ReadOnly,
    ShardTruncated,
    StalePlan,
    StorageError,
    UnsafeInPlace,
    UsageError,
    VoidModification,
)
from planner.fsio import calls, room
from planner.plan import Plan, Policy, decide
from planner.transaction import apply_plan, revert, verify

FIRST = "model.layers.0.mlp.up_proj.weight"
PLACES = pytest.mark.parametrize("place", ["out", "in-place"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    """Every file, folder, mode and name below `folder` is afterwards what it was."""
    before = everything(folder)
    yield
    assert everything(folder) == before


def _refused(
    plan: Plan, model: Path, kind: type[PlannerError], place: str = "in-place", **options: Any
) -> PlannerError:
    """Apply, and be refused with exactly that error, and leave everything as it was."""
    out = model.parent / "out" if place == "out" else None
    options = {"policy": Policy(), "by": "tester", "out": out, **options}
    with nothing_changes(model.parent), pytest.raises(PlannerError) as caught:
        apply_plan(plan, model, **options)
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


@PLACES
def test_a_plan_for_other_weights_is_stale(model: Path, place: str) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    change(model, scale(2, layers="1"))
    assert _refused(plan, model, StalePlan, place).exit_status == 4


def test_a_plan_for_another_configuration_is_stale(model: Path) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    (model / "config.json").write_text(json.dumps({"model_type": "other"}))
    _refused(plan, model, StalePlan, "out")


def test_a_profile_kept_for_other_bytes_does_not_hide_them(model: Path) -> None:
    """The disk decides, not the cache: the cited value is compared with the bytes that are there."""
    from planner.checkpoint import open_checkpoint
    from planner.profile import profile_of, store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SETTLED_NS", -(10**18))  # keep profiles of files that were changed just now
        patch.setattr(store, "_signature", lambda _: "always the same")
        old = profile_of(open_checkpoint(model)).by_name[FIRST].std
        change(model, scale(2, layers="0"))
        cited = [{"tensor": FIRST, "fact": "std", "value": old}]
        plan = approved_plan(model, {**scale(2, layers="0"), "evidence": cited})
        error = _refused(plan, model, PlanRefused)
    assert "it cites std" in "".join(error.problems)  # type: ignore[attr-defined]


@PLACES
def test_what_is_not_approved_is_not_applied(model: Path, place: str) -> None:
    plan = a_plan(model, scale(2, layers="0"), scale(2, layers="1"))
    error = _refused(plan, model, PlanNotApproved, place)
    assert error.exit_status == 3
    assert "m01, m02" in error.message
    half = decide(plan, ["m01"], "approved", reviewer="tester")
    assert "not reviewed: m02" in _refused(half, model, PlanNotApproved, place).message
    rejected = decide(plan, ["m01", "m02"], "rejected", reviewer="tester")
    assert "no modification of the plan is approved" in _refused(rejected, model, PlanNotApproved, place).message


@PLACES
def test_what_was_edited_after_its_approval_is_not_applied(model: Path, place: str) -> None:
    plan = approved_plan(model, scale(1.5, layers="0"))
    edited = plan.modifications[0].model_copy(update={"confidence": 0.9})
    error = _refused(plan.model_copy(update={"modifications": (edited,)}), model, PlanNotApproved, place)
    assert "edited after the review: m01" in error.message


@PLACES
def test_a_modification_without_effect_is_refused_unless_it_is_allowed(model: Path, place: str) -> None:
    plan = approved_plan(model, scale(1.0001, layers="0"), scale(2, layers="1"))
    error = _refused(plan, model, VoidModification, place)
    assert error.exit_status == 3
    assert any(line.startswith("m01: it would change no stored bit") for line in error.problems)  # type: ignore[attr-defined]
    before = stored(model)
    receipt = apply_plan(
        plan, model, out=model.parent / "out" if place == "out" else None, policy=Policy(), by="t", allow_void=True
    )
    assert [tensor.name for tensor in receipt.tensors] == ["model.layers.1.mlp.up_proj.weight"]
    assert stored(Path(receipt.path))[FIRST].tobytes() == before[FIRST].tobytes()


@PLACES
def test_a_plan_that_changes_nothing_at_all_can_be_allowed_and_taken_back(model: Path, place: str) -> None:
    before = files(model)
    receipt = change(
        model,
        scale(1.0001, layers="0"),
        out=model.parent / "out" if place == "out" else None,
        allow_void=True,
        card=False,
    )
    assert receipt.tensors == ()
    assert files(Path(receipt.path)) == before
    assert verify(Path(receipt.path)).sound
    assert revert(Path(receipt.path), by="tester").in_force == ()
    assert files(Path(receipt.path)) == before


@PLACES
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Policy(operations=("zero",)), "does not allow scale"),
        (Policy(protected=("*.layers.0.*",)), f"protects {FIRST}"),
        (Policy(largest_relative_change=0.01), "would change by 0.5 of its norm"),
        (Policy(most_modifications=1), "2 modifications; the policy allows 1"),
    ],
)
def test_what_is_outside_the_policy_is_refused(model: Path, place: str, policy: Policy, said: str) -> None:
    plan = approved_plan(model, scale(1.5, layers="0"), scale(1.5, layers="1"), policy=policy)
    error = _refused(plan, model, PlanRefused, place, policy=policy)
    assert said in "\n".join(error.problems)  # type: ignore[attr-defined]


def test_a_rejected_modification_does_not_count_against_the_policy(model: Path) -> None:
    policy = Policy(most_modifications=1)
    plan = approved_plan(model, scale(1.5, layers="0"), scale(1.5, layers="1"), policy=policy)
    plan = decide(plan, ["m02"], "rejected", reviewer="tester")
    apply_plan(plan, model, out=None, policy=policy, by="tester")


@PLACES
@pytest.mark.parametrize(
    ("modification", "said"),
    [
        (scale(2, tensors=["model.layers.0.mlp.upproj.weight"]), "no tensor matches"),
        (scale(2, tensors=["model.layers.{0-4}.mlp.up_proj.weight"]), "no tensor matches 'model.layers.4.mlp"),
        (scale(2, layers="2-9"), "no layer 4, 5, 6, 7, 8, 9"),
        (scale(2, roles=["gate_proj"]), "has the role 'gate_proj'"),
        (scale(2, tensors=["*norm*"], layers="0"), "no layer 0 (no tensor here is in a layer)"),
        (scale(1e40, layers="0", tensors=["*"]), "would become NaN or infinite"),
        ({**scale(2, layers="0"), "evidence": [{"tensor": FIRST, "fact": "std", "value": 1.0}]}, "it cites std = 1.0"),
        ({**scale(2, layers="0"), "evidence": [{"tensor": "x", "fact": "std", "value": 1.0}]}, "it cites 'x'"),
        (
            {**scale(2, layers="0"), "evidence": [{"tensor": FIRST, "fact": "beauty", "value": 1.0}]},
            "'beauty' is not a statistic",
        ),
    ],
)
def test_what_makes_no_sense_for_this_model_is_refused(
    model: Path, place: str, modification: dict[str, Any], said: str
) -> None:
    policy = Policy(largest_relative_change=1e300)
    plan = approved_plan(model, scale(2, layers="3"), modification, policy=policy)
    error = _refused(plan, model, PlanRefused, place, policy=policy)
    assert said in "\n".join(error.problems)  # type: ignore[attr-defined]


@PLACES
def test_values_that_this_version_does_not_understand_are_not_changed(tmp_path: Path, place: str) -> None:
    tensors = {"steps": ("I64", np.arange(4, dtype="<i8")), "w.weight": ("BF16", random_tensor((4,)))}
    model = write_checkpoint(tmp_path / "model", tensors)
    error = _refused(approved_plan(model, scale(2, tensors=["*"])), model, PlanRefused, place)
    assert "steps is I64" in "\n".join(error.problems)  # type: ignore[attr-defined]


def test_an_output_that_is_there_is_never_written_into(model: Path, tmp_path: Path) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "file", "link", "model"):
        error = _refused(plan, model, OutputExists, out=tmp_path / name)
        assert error.exit_status == 2
    assert _refused(plan, model, UsageError, out=model / "inside").exit_status == 2
    assert _refused(plan, model, UsageError, out=model / "sub" / "inside").exit_status == 2
    assert "missing does not exist" in _refused(plan, model, StorageError, out=tmp_path / "missing" / "out").message


def test_an_output_that_appears_while_the_result_is_written_is_left_alone(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    real = fsio.publish_folder

    def late(stage: Path, final: Path) -> None:
        out.mkdir()
        (out / "precious").write_text("x")
        real(stage, final)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsio, "publish_folder", late)
        with pytest.raises(StorageError):
            change(model, scale(2, layers="0"), out=out)
    assert os.listdir(out) == ["precious"]
    assert litter(tmp_path) == []


def test_a_hub_snapshot_is_not_changed_in_place(tmp_path: Path) -> None:
    (tmp_path / "models--o--n" / "blobs").mkdir(parents=True)
    snapshot = small_model(tmp_path / "models--o--n" / "snapshots" / "abc")
    error = _refused(approved_plan(snapshot, scale(2, layers="0")), snapshot, UnsafeInPlace)
    assert "--out" in error.hint


def test_links_are_not_changed_in_place(model: Path, tmp_path: Path) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    (model / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (model / "tokenizer.json").symlink_to("../elsewhere.json")
    assert "tokenizer.json is a symbolic link" in _refused(plan, model, UnsafeInPlace).message


def test_a_link_to_a_model_is_not_changed_in_place(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("model")
    error = _refused(approved_plan(model, scale(2, layers="0")), tmp_path / "link", UnsafeInPlace)
    assert str(model) in error.hint
    change(model, scale(2, layers="0"))
    with nothing_changes(tmp_path), pytest.raises(UnsafeInPlace):
        revert(tmp_path / "link", by="tester")


@PLACES
def test_a_link_to_a_folder_inside_the_model_is_refused_and_not_lost(model: Path, tmp_path: Path, place: str) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    (tmp_path / "elsewhere").mkdir()
    (model / "linked").symlink_to("../elsewhere")
    assert "linked is a link to a folder" in _refused(plan, model, StorageError, place).message


@PLACES
def test_what_is_neither_file_nor_folder_is_refused(model: Path, place: str) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    os.mkfifo(model / "pipe")
    assert "pipe is not a regular file" in _refused(plan, model, StorageError, place).message


def test_a_shard_that_is_cut_short_is_refused(model: Path) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    shard = model / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    _refused(plan, model, ShardTruncated)


@PLACES
def test_too_little_space_is_noticed_before_the_first_byte(
    model: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    monkeypatch.setattr(room.os, "statvfs", lambda _: SimpleNamespace(f_bavail=2**8, f_frsize=2**12))
    with pytest.MonkeyPatch.context() as patch:
        for call in ("create", "fallocate", "clone", "link"):
            patch.setattr(calls, call, lambda *_: pytest.fail("something was written"))
        assert _refused(plan, model, NoSpace, place).exit_status == 7


@PLACES
def test_no_place_is_written_that_is_read_only(model: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = approved_plan(model, scale(2, layers="0"))
    real = os.open

    def read_only(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(calls.os, "open", read_only)
        assert _refused(plan, model, ReadOnly, place).exit_status == 7


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder that any user can reach and write into, with a model of root's in it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        small_model(Path(folder) / "model")
        yield Path(folder)


def _raises(kind: type[Exception], work: Callable[[], object]) -> Callable[[], None]:
    def checked() -> None:
        with pytest.raises(kind):
            work()

    return checked


@AS_ROOT
def test_a_model_that_the_user_may_not_write_is_not_changed_in_place(shared: Path) -> None:
    model = shared / "model"
    for name in ("tokenizer.json", "sub", "sub/notes.txt"):
        (model / name).chmod(0o755)
    plan = approved_plan(model, scale(2, layers="0"))
    work = _raises(ReadOnly, lambda: apply_plan(plan, model, out=None, policy=Policy(), by="nobody"))
    with nothing_changes(shared):
        assert as_nobody(work) == 0
    (shared / "model").chmod(0o777)  # then the folder may be written, but not the one in it
    with nothing_changes(shared):
        assert as_nobody(work) == 0


@AS_ROOT
def test_a_place_that_the_user_may_not_write_is_refused(shared: Path) -> None:
    model = shared / "model"
    plan = approved_plan(model, scale(2, layers="0"))
    shared.chmod(0o755)
    with nothing_changes(shared):
        work = _raises(ReadOnly, lambda: apply_plan(plan, model, out=shared / "o", policy=Policy(), by="nobody"))
        assert as_nobody(work) == 0


@AS_ROOT
def test_a_read_only_model_of_somebody_else_can_be_copied_and_the_copy_changed(shared: Path) -> None:
    model, out = shared / "model", shared / "out"
    for name, mode in (("tokenizer.json", 0o444), ("sub/notes.txt", 0o444), ("sub", 0o555), ("empty", 0o555)):
        (model / name).chmod(mode)
    model.chmod(0o555)
    plan = approved_plan(model, scale(2, layers="0"))

    def work() -> None:
        apply_plan(plan, model, out=out, policy=Policy(), by="nobody")
        revert(out, by="nobody")
        assert verify(out).original

    old = everything(model)
    assert as_nobody(work) == 0
    assert everything(model) == old
    assert files(out) == files(model)
    assert out.stat().st_uid == NOBODY
    assert litter(shared) == []


@AS_ROOT
@PLACES
def test_a_disk_that_fills_up_on_the_way_leaves_the_old_state(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real full disk: it looks large enough at first, and is not."""
    with tmpfs(tmp_path / "disk", 448 * 2**10) as disk:
        tensors = {f"layers.{layer}.w.weight": ("BF16", random_tensor((100, 300), seed=layer)) for layer in range(4)}
        model = write_checkpoint(disk / "model", tensors, shards=2)
        plan = approved_plan(model, scale(1.5, layers="0-3"))
        monkeypatch.setattr(room.os, "statvfs", lambda _: SimpleNamespace(f_bavail=2**28, f_frsize=2**12))
        with nothing_changes(disk), pytest.raises(NoSpace):
            apply_plan(plan, model, out=disk / "out" if place == "out" else None, policy=Policy(), by="tester")


@AS_ROOT
def test_a_full_disk_does_not_keep_recover_from_freeing_space(tmp_path: Path) -> None:
    from planner.transaction import recover

    with tmpfs(tmp_path / "disk", 256 * 2**10) as disk:
        model = small_model(disk / "model")
        stage = disk / ".model.planner-stage-0badcafe"
        stage.mkdir()
        with (stage / "half").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        assert shutil.disk_usage(disk).free == 0
        assert recover(model) == (stage,)
        assert litter(disk) == []


def test_a_history_that_the_weights_do_not_match_is_not_added_to(model: Path) -> None:
    """Else a patch would be in force that revert can only refuse to take back."""
    change(model, scale(2, layers="0"))
    shard = model / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    plan = approved_plan(model, scale(2, layers="1"))
    _refused(plan, model, LedgerDamaged)
    change(model, scale(2, layers="1"), out=model.parent / "out")
    assert verify(model.parent / "out").sound
