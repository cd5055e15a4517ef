"""Compiled kernels are kept on disk where that is possible; where it is not, profiling works all the same."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_checkpoint

import planner
from planner.checkpoint import open_checkpoint
from planner.profile import profile_checkpoint

PACKAGE = Path(planner.__file__).parent
KERNELS = PACKAGE / "profile" / "kernels"

CHILD = """
import json, resource, sys
import planner
from pathlib import Path
from planner.checkpoint import open_checkpoint
from planner.profile import profile_checkpoint
from planner.profile import kernels
if "full disk" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # every write to a file fails
profile = profile_checkpoint(open_checkpoint(Path(sys.argv[1])), workers=2)
compiled = [kernel._compiled for kernel in vars(kernels).values() if hasattr(kernel, "_compiled")]
hits = sum(sum(one.stats.cache_hits.values()) for one in compiled if one)
found = json.loads(profile.model_copy(update={"created": ""}).model_dump_json())
json.dump([planner.__file__, hits, found], sys.stdout)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors of 8 bits, whose kernels are the quickest to compile."""
    patterns = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    return write_checkpoint(tmp_path_factory.mktemp("model"), {"w": ("F8_E4M3", patterns), "i": ("I8", patterns)})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, copied so that nothing compiled lies beside it."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "site" / "planner", ignore=ignore)
    return tmp_path / "site"


def profiled(model: Path, package: Path, cache: Path, *arguments: str) -> tuple[str, int, Any]:
    """Where a fresh process took the package from, how many kernels it found compiled, and the profile it made."""
    nowhere = "/dev/null/nowhere"  # no folder can be made there, by root neither
    changed = {"PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(cache)}
    environment = os.environ | changed | {"HOME": nowhere, "XDG_CACHE_HOME": nowhere}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(model), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=model,
    )
    assert done.returncode == 0, done.stderr
    where, hits, profile = json.loads(done.stdout)
    return where, hits, profile


def expected(model: Path) -> Any:
    return json.loads(profile_checkpoint(open_checkpoint(model)).model_copy(update={"created": ""}).model_dump_json())


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".nbi", ".nbc")]


def test_a_folder_that_cannot_be_written_to(model: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "planner" / "profile" / "kernels" / "__pycache__").write_bytes(b"a file, where numba wants a folder")
    where, hits, profile = profiled(model, copy, Path("/dev/null/nowhere"))
    assert where == str(copy / "planner" / "__init__.py")
    assert (hits, profile) == (0, expected(model))
    assert kept(tmp_path) == []


def test_a_package_in_an_archive(model: Path, copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "planner.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (copy / "planner").rglob("*.py"):
            file.write(path, path.relative_to(copy))
    where, _, profile = profiled(model, archive, Path("/dev/null/nowhere"))
    assert where == str(archive / "planner" / "__init__.py")
    assert profile == expected(model)


def test_a_full_disk(model: Path, copy: Path, tmp_path: Path) -> None:
    _, _, profile = profiled(model, copy, tmp_path / "cache", "full disk")
    assert profile == expected(model)
    assert not any(path.stat().st_size for path in kept(tmp_path))


def test_what_is_kept_is_used_and_what_is_damaged_is_mended(model: Path, copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _, none, first = profiled(model, copy, cache)
    _, all_of_them, again = profiled(model, copy, cache)
    assert (none, again) == (0, first)
    assert first == expected(model)
    assert all_of_them >= 5
    sizes = {path: path.stat().st_size for path in kept(cache)}
    assert len(sizes) > all_of_them
    for number, path in enumerate(sorted(sizes)):
        raw = path.read_bytes()
        path.write_bytes([raw[: len(raw) // 2], b"\x80\x04nonsense", b""][number % 3])
    _, hits, after = profiled(model, copy, cache)
    assert (hits, after) == (0, first)
    mended = {path: path.stat().st_size for path in kept(cache)}
    assert mended.keys() == sizes.keys()
    assert all(size > 100 for size in mended.values())
    _, hits, after = profiled(model, copy, cache)
    assert (hits, after) == (all_of_them, first)


def test_all_that_a_kernel_calls_lies_in_its_own_file() -> None:
    """The cache knows a kernel by the text of its own file: what is imported could change without it."""
    for path in KERNELS.glob("*.py"):
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("planner")
            for alias in node.names
        }
        if path.name != "__init__.py":
            assert imported <= {"ANY_ORDER", "compiled"}, path
