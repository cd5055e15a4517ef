"""What the tests of the command line share: a plan for the tiny model, a small suite, and a view of a whole folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = Path(__file__).parents[2] / "examples" / "tiny-model" / "texts" / "stories.heldout.jsonl"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of tests that run side by side only wait for each other."""
    monkeypatch.setattr("planner.inference.loading.cores", lambda: 1)


@pytest.fixture
def suite(tmp_path: Path) -> Callable[[float], Path]:
    """A suite of a dozen stories whose one gate allows so much drift: 0 refuses every change."""

    def write(limit: float) -> Path:
        (tmp_path / "dozen.jsonl").write_text("".join(TEXT.read_text().splitlines(keepends=True)[:12]))
        path = tmp_path / f"suite-{limit:g}.toml"
        path.write_text(
            '[[metric]]\nname = "stories"\nkind = "text_loss"\ntext = "dozen.jsonl"\nmax_tokens = 64\n'
            f'[[gate]]\nrule = "max_drift"\nlimit = {limit}\n'
        )
        return path

    return write


@pytest.fixture
def proposed(planner: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> Path:
    """A plan of the rules for the tiny model, not reviewed."""
    path = tmp_path / "plan.json"
    assert planner("propose", tiny_model, "--goal", "tidy up", "--out", path).status == 0
    return path


@pytest.fixture
def approved(proposed: Path, planner: Callable[..., Any], tiny_model: Path) -> Path:
    """The same plan with every modification approved."""
    assert planner("review", proposed, "--model", tiny_model, "--approve", "all", "--reviewer", "ann").status == 0
    return proposed


@pytest.fixture
def edited(proposed: Path, tmp_path: Path) -> Callable[..., Path]:
    """The plan with one value replaced by hand: `edited("modifications", 0, "confidence", 2)`."""

    def edit(*path_and_value: Any) -> Path:
        *path, last, value = path_and_value
        document = json.loads(proposed.read_text())
        place = document
        for step in path:
            place = place[step]
        place[last] = value
        result = tmp_path / "edited.json"
        result.write_text(json.dumps(document))
        return result

    return edit


@pytest.fixture
def everything() -> Callable[[Path], dict[str, bytes | None]]:
    """Every path below a folder with its bytes: equal before and after means that nothing was left or changed."""

    def look(folder: Path) -> dict[str, bytes | None]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))
        }

    return look
