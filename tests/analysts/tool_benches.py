"""What the tests of the tools work on: a bench for any checkpoint, and a strict reader of the rows in a result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from planner.analysts.aliases import Aliases
from planner.analysts.base import Brief
from planner.analysts.tools import Bench, Called, call
from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.effects import check, known_evidence
from planner.plan import Policy
from planner.profile import histograms_of, profile_of

__all__ = ["TINY", "bench_of", "facts_in", "good", "plain_and_quoted", "refused", "rows_in"]

TINY = Path(__file__).parents[2] / "examples" / "tiny-model"


def bench_of(model: Path, cache: Path, *, evidence: Path | None = None, spectra: bool = False, **policy: Any) -> Bench:
    """A bench as the analyst has it; the profile and its histograms are kept in `cache`."""
    checkpoint, limits = open_checkpoint(model), Policy(**policy)
    profile = profile_of(checkpoint, cache=cache, spectra=spectra)
    kept = histograms_of(profile, cache=cache)
    known = known_evidence(evidence) if evidence else None
    brief = Brief(
        goal="fewer mistakes",
        profile=profile,
        policy=limits,
        check=lambda plan: check(plan, checkpoint, profile, limits, folder=cache, histograms=kept, evidence=known),
        checkpoint=checkpoint,
        model=map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()}),
        histograms=kept,
        evidence=known,
    )
    return Bench(brief, Aliases((tensor.name for tensor in profile.tensors), brief.model))


def called(bench: Bench, name: str, **arguments: Any) -> Called:
    return call(name, json.dumps(arguments), bench)


def good(bench: Bench, name: str, **arguments: Any) -> str:
    """The text of a call that has to go well."""
    found = called(bench, name, **arguments)
    assert found.ok, found.text
    return found.text


def refused(bench: Bench, name: str, **arguments: Any) -> str:
    """The text of a call that has to be refused."""
    found = called(bench, name, **arguments)
    assert not found.ok, found.text
    assert not found.text.startswith("the tool failed"), found.text
    return found.text


def plain_and_quoted(text: str) -> None:
    """Nothing but plain characters, and what begins an order, OBEY, in quotes alone."""
    assert all(" " <= c <= "~" or c == "\n" for c in text), text
    assert not re.search("OBEY", re.sub(r'"(?:[^"\\\n]|\\.)*"', "", text)), text
    assert "# System" not in [line.strip() for line in text.splitlines()]


def rows_in(text: str) -> list[dict[str, str]]:
    """The rows of the tables in a result, by the names of their columns; a table ends where no ` | ` is."""
    rows: list[dict[str, str]] = []
    header: list[str] | None = None
    for line in text.splitlines():
        cells = line.split(" | ")
        if len(cells) == 1:
            header = None if not line.startswith(" ") else header
        elif header is None:
            header = cells
        else:
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def facts_in(text: str, title: str = "facts to cite") -> dict[str, float | None]:
    """The facts in the lines that begin with `title`."""
    facts = {}
    for line in text.splitlines():
        if line.startswith(title):
            for part in line.partition(": ")[2].split(", "):
                name, _, value = part.partition(" (")[0].partition(" = ")
                facts[name] = None if value == "null" else float(value)
    return facts
