"""The profiler as a library: `planner.profile(...)`, typed, and as a table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from builders import random_tensor, write_checkpoint

import planner
from planner.checkpoint import open_checkpoint
from planner.errors import ExtraMissing, NotACheckpoint
from planner.profile import Profile

TENSORS = {f"model.layers.{n}.mlp.down_proj.weight": ("BF16", random_tensor((8, 16), seed=n)) for n in range(3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", TENSORS)


def test_a_path_a_name_and_an_open_checkpoint_are_all_understood(folder: Path) -> None:
    found = [planner.profile(given) for given in (folder, str(folder), open_checkpoint(folder))]
    assert all(isinstance(profile, Profile) for profile in found)
    assert {profile.fingerprint for profile in found} == {found[0].fingerprint}
    assert list(found[0].by_name) == list(TENSORS)
    assert planner.profile(folder, spectra=True, workers=1, force=True).tensors[0].spectrum is not None


def test_progress_is_told_the_bytes(folder: Path) -> None:
    told: list[int] = []
    profile = planner.profile(folder, progress=told.append, force=True)
    assert sum(told) == profile.bytes == 3 * 8 * 16 * 2


def test_what_is_no_checkpoint_is_an_error_of_the_planner(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint):
        planner.profile(tmp_path / "nothing")


def test_a_profile_is_a_table(folder: Path) -> None:
    table = planner.profile(folder).to_arrow()
    assert table.column("name").to_pylist() == list(TENSORS)
    assert table.column("rows_count").to_pylist() == [8] * 3


def test_importing_the_package_alone_is_enough_and_costs_nothing(folder: Path) -> None:
    script = (
        "import sys, planner; assert 'numpy' not in sys.modules; "
        f"print(len(planner.profile({str(folder)!r}).tensors)); "
        "import planner.profile; print(len(planner.profile.profile_of.__name__))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "10"]
    with pytest.raises(AttributeError, match="nonsense"):
        planner.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match="nonsense"):
        planner.profile.nonsense  # noqa: B018


def test_a_missing_extra_is_found_out_before_a_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", {"w": ("BF16", random_tensor((12, 11)))})
    monkeypatch.setattr("planner.profile.spectra._EXACT_SIDE", 10)
    monkeypatch.setitem(sys.modules, "sklearn.utils.extmath", None)
    told: list[int] = []
    with pytest.raises(ExtraMissing, match="scikit-learn") as caught:
        planner.profile(folder, spectra=True, progress=told.append)
    assert "[spectra]" in caught.value.hint
    assert told == []
