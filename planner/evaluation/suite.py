"""The suite file: which metrics are measured, on which texts, and which gates a candidate has to pass."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from blake3 import blake3
from pydantic import Field, ValidationError

from planner.errors import FileUnreadable, SuiteInvalid, TextInvalid
from planner.inference import parse_documents, read_text_file
from planner.records import Record

__all__ = ["Drift", "Gate", "Metric", "Suite", "Text", "load_suite", "suite_of"]

_LATER_KINDS = ("multiple_choice", "generation", "code", "contrast", "lm_eval")
_R = TypeVar("_R", bound=Record)


class Metric(Record):
    """One measured quantity."""

    name: str = Field(min_length=1)
    """Shown in reports; unique in the suite."""
    kind: Literal["text_loss"]
    """text_loss: the mean negative log-likelihood in nats per token, paired by document. Lower is better."""
    text: str = Field(min_length=1)
    """The file of documents, relative to the suite file."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a document that are used, after the BOS token. Default, and upper limit: the model's context."""


class Gate(Record):
    """One rule that a candidate has to pass."""

    rule: Literal["improved", "not_worse", "max_drift"]
    """improved: the metric's verdict is "improved", and where it was compared with at least 19 random plans, its rank
    among them is unlikely by chance (p <= 0.05). not_worse: the upper ends of the 95 % intervals of the raw and of
    the calibrated difference are at most `margin`. max_drift: the mean KL divergence is at most `limit`."""
    metric: str | None = None
    """The name of the metric; required, except for max_drift, which takes none."""
    margin: float | None = Field(default=None, ge=0)
    """For not_worse: the loss that is tolerated, in nats per token. Default 0.01."""
    limit: float | None = Field(default=None, ge=0)
    """For max_drift, required: the largest mean KL divergence, in nats per token."""

    @property
    def name(self) -> str:
        """How a report calls this gate."""
        return self.rule if self.metric is None else f"{self.metric} {self.rule}"


class Drift(Record):
    """Where the distance between the two models' predictions is measured."""

    text: str = Field(min_length=1)
    """The file of neutral documents, relative to the suite file. Default: the text of the first text_loss metric."""
    max_tokens: int | None = Field(default=None, ge=1)
    """As for a metric. Default: that of the first metric on the same text, else the model's context."""


class Text(Record):
    """The documents of one file, as they were read."""

    name: str
    """The file as the suite names it."""
    digest: str
    """BLAKE3 of the file's bytes, as blake3:<hex>."""
    documents: tuple[str, ...] = Field(exclude=True, repr=False)
    """The documents, in the order of the file."""


class Suite(Record):
    """A suite file with the texts it names, read once, so that what is measured is what the digests say."""

    name: str
    """The suite file's name without its ending."""
    digest: str
    """BLAKE3 of the suite file's bytes, as blake3:<hex>."""
    metrics: tuple[Metric, ...] = Field(min_length=1)
    """In the order of the file."""
    gates: tuple[Gate, ...] = ()
    """In the order of the file."""
    drift: Drift
    """Where drift is measured."""
    texts: tuple[Text, ...]
    """Every text the metrics and the drift name, once each."""

    def documents(self, text: str) -> tuple[str, ...]:
        """The documents of the file that the suite names `text`."""
        return next(found.documents for found in self.texts if found.name == text)


def load_suite(path: Path) -> Suite:
    """Read a suite file (TOML) and every text it names.

    Raises `FileUnreadable` when the suite file cannot be read, and `SuiteInvalid` with every problem found, not only
    the first: unknown or missing fields, kinds of later versions, gates on metrics that do not exist, texts that are
    missing, malformed or too short for a paired test.
    """
    data = read_text_file(path)
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise SuiteInvalid(f"{path} is not TOML: {error}", hint="see the line it names") from None
    problems = [f"unknown key {key!r}" for key in table if key not in ("metric", "gate", "drift")]
    metrics = [_metric(entry, place, problems) for place, entry in _entries(table, "metric", problems)]
    gates = [_record(Gate, entry, place, problems) for place, entry in _entries(table, "gate", problems)]
    drift = _record(Drift, table["drift"], "drift", problems) if "drift" in table else None
    if not table.get("metric"):
        problems.append("no [[metric]]")
    good = tuple(metric for metric in metrics if metric is not None)
    _check_names(good, problems)
    _check_gates([gate for gate in gates if gate is not None], table, problems)
    if drift is None and good:
        drift = Drift(text=good[0].text, max_tokens=good[0].max_tokens)
    elif drift is not None and drift.max_tokens is None:
        same = (metric.max_tokens for metric in good if metric.text == drift.text)
        drift = drift.model_copy(update={"max_tokens": next(same, None)})
    texts = _texts(path.parent, good, drift, problems)
    if problems or drift is None:
        raise SuiteInvalid(_message(path, problems), hint="correct the suite file; nothing was measured")
    return Suite(
        name=path.stem,
        digest=_digest(data),
        metrics=good,
        gates=tuple(gate for gate in gates if gate is not None),
        drift=drift,
        texts=texts,
    )


def suite_of(documents: Mapping[str, Sequence[str]], *, max_tokens: int | None = None) -> Suite:
    """A suite without gates, of one text_loss metric for each entry, from documents in memory; for searches.

    Every document is cut after `max_tokens` tokens. Drift is measured on the first metric's documents. Raises
    `SuiteInvalid` where a paired comparison is not possible.
    """
    few = [name for name, texts in documents.items() if len(set(texts)) < 2]
    if few or not documents:
        what = f"{few[0]} has fewer than 2 different documents" if few else "there is no text"
        raise SuiteInvalid(what, hint="a paired comparison needs at least 2 different documents")
    metrics = tuple(Metric(name=name, kind="text_loss", text=name, max_tokens=max_tokens) for name in documents)
    texts = tuple(
        Text(name=name, digest=_digest(json.dumps(list(found)).encode()), documents=tuple(found))
        for name, found in documents.items()
    )
    drift = Drift(text=metrics[0].text, max_tokens=max_tokens)
    return Suite(name="texts", digest=_digest(b""), metrics=metrics, drift=drift, texts=texts)


def _message(path: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    return f"{path} has {len(problems)} problems:" + "".join(f"\n  - {problem}" for problem in problems)


def _entries(table: dict[str, Any], key: str, problems: list[str]) -> list[tuple[str, Any]]:
    entries = table.get(key, [])
    if not isinstance(entries, list):
        problems.append(f"{key} is no list of tables: write [[{key}]]")
        return []
    return [(f"{key} {number}", entry) for number, entry in enumerate(entries, start=1)]


def _metric(entry: Any, place: str, problems: list[str]) -> Metric | None:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind in _LATER_KINDS:
        # Such a metric has fields that this version does not know; one sentence says more than a list of those.
        problems.append(f'{place}: kind "{kind}" is not available in this version; only "text_loss" is')
        return None
    return _record(Metric, entry, place, problems)


def _record(kind: type[_R], entry: Any, place: str, problems: list[str]) -> _R | None:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            where = ".".join(str(part) for part in found["loc"])
            problems.append(f"{place}: {where + ': ' if where else ''}{found['msg']}")
        return None


def _check_names(metrics: tuple[Metric, ...], problems: list[str]) -> None:
    seen: set[str] = set()
    for metric in metrics:
        if metric.name in seen:
            problems.append(f"two metrics have the name {metric.name!r}")
        seen.add(metric.name)


def _check_gates(gates: list[Gate], table: dict[str, Any], problems: list[str]) -> None:
    # Against the names as written, so that a metric with a problem of its own does not make its gates look wrong too.
    written = table.get("metric", [])
    known = {entry.get("name") for entry in written if isinstance(entry, dict)} if isinstance(written, list) else set()
    for gate in gates:
        place = f"gate {gate.name!r}"
        if gate.rule == "max_drift":
            if gate.metric is not None:
                problems.append(f"{place}: max_drift takes no metric; its text stands under [drift]")
            if gate.limit is None:
                problems.append(f"{place}: max_drift needs a limit, the largest mean KL divergence in nats per token")
        elif gate.metric is None:
            problems.append(f"{place}: {gate.rule} needs a metric")
        elif gate.metric not in known:
            problems.append(f"{place}: no metric has the name {gate.metric!r}")
        if gate.limit is not None and gate.rule != "max_drift":
            problems.append(f"{place}: limit belongs to max_drift")
        if gate.margin is not None and gate.rule != "not_worse":
            problems.append(f"{place}: margin belongs to not_worse")


def _texts(folder: Path, metrics: tuple[Metric, ...], drift: Drift | None, problems: list[str]) -> tuple[Text, ...]:
    names = [metric.text for metric in metrics] + ([drift.text] if drift is not None else [])
    paired = {metric.text for metric in metrics}
    texts: list[Text] = []
    for name in dict.fromkeys(names):
        path = folder / name
        try:
            data = read_text_file(path)
            documents = parse_documents(data.decode("utf-8-sig"), path)
        except (FileUnreadable, TextInvalid) as error:
            problems.append(error.message)
            continue
        if name in paired and len(set(documents)) < 2:
            problems.append(f"{path}: a paired comparison needs at least 2 different documents, found 1")
        texts.append(Text(name=name, digest=_digest(data), documents=documents))
    return tuple(texts)


def _digest(data: bytes) -> str:
    return f"blake3:{blake3(data).hexdigest()}"
