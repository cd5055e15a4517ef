"""A pipeline on the bundled model with a dozen stories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TEXT = Path(__file__).parents[2] / "examples" / "tiny-model" / "texts" / "stories.heldout.jsonl"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of tests that run side by side only wait for each other."""
    monkeypatch.setattr("planner.inference.loading.cores", lambda: 1)


@pytest.fixture
def pipeline(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """A pipeline file; its one gate allows so much drift (0 refuses every change), `more` is appended."""

    def write(limit: float = 10, more: str = "") -> Path:
        (tmp_path / "dozen.jsonl").write_text("".join(TEXT.read_text().splitlines(keepends=True)[:12]))
        (tmp_path / "suite.toml").write_text(
            '[[metric]]\nname = "stories"\nkind = "text_loss"\ntext = "dozen.jsonl"\nmax_tokens = 64\n'
            f'[[gate]]\nrule = "max_drift"\nlimit = {limit}\n'
        )
        path = tmp_path / "tidy.toml"
        path.write_text(f'model = "tiny-model"\ngoal = "tidy up"\nsuite = "suite.toml"\ncontrols = 0\n{more}')
        return path

    return write
