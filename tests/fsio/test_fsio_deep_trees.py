"""A tree of more levels than Python can call itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from planner import fsio


def test_a_deep_tree_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "d"
    tree.mkdir()
    monkeypatch.chdir(tree)
    for _ in range(sys.getrecursionlimit() + 100):
        Path("d").mkdir()
        os.chdir("d")
    Path("file").touch()
    os.chdir(tmp_path)
    fsio.remove_tree(tree)
    assert os.listdir(tmp_path) == []
