"""A checkpoint that tells the model what to do, and a model that does it: nothing leaves the policy.

What a stranger wrote reaches a model as data between quotes. Whatever the model then answers, each modification of the
plan that comes out names tensors that are there and may be changed, by operations that are allowed, within the limits.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from poison import CASES, GOOD, SIGN, TEXTS, Case, Obedient, evidence_of, greedy, legal, named, written

from planner.analysts import Asking, LLMAnalyst
from planner.analysts.aliases import Aliases
from planner.analysts.prompts import TEMPLATES
from planner.analysts.settings import Limits
from planner.analysts.track_record import TrackRecord
from planner.dtypes import FLOATS
from planner.effects import check
from planner.errors import NoValidPlan, PlannerError
from planner.plan import read_plan, resolve, write_plan
from planner.resources import resource

OURS = {
    "operations": ("scale", "clamp"),
    "protected": ("model.embed_tokens.*", "*norm*", "model.layers.0.self_attn.*"),
    "largest_relative_change": 0.1,
    "most_modifications": 6,
    "most_tensors": 4,
}
HEADINGS = {line for name in TEMPLATES for line in re.findall(r"^# .+$", resource("prompts", name), re.MULTILINE)}
QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')
REPAIRED = re.compile(r"- (?!.*(nearest|such as))")
"""A problem in a repair. It repeats what the model called its fields and ids; of our own it names only what is here."""
QUOTED_BY_PYTHON = re.compile(r"'(?:[^'\\\n]|\\.)*'")
_opened: list[str] | None = None


def _heard(event: str, given: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo"):
        _opened.append(str(given[1] if event.startswith("socket") else given[0]))


@pytest.fixture(scope="module", autouse=True)
def heard():
    """Every file, folder and address that is opened, where a test listens; a hook of Python's cannot be taken away."""
    sys.addaudithook(_heard)


@contextmanager
def listening() -> Iterator[list[str]]:
    global _opened
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


def faults(request, case: Case) -> list[str]:
    """What is wrong with what a model is told: plain characters only, the poison between quotes alone, the prompt's own
    headings once each. What the model said itself goes back to it as it was, in its own messages."""
    found = []
    told = [message.content for message in request.messages if message.role != "assistant"]
    offered = json.dumps([tool.model_dump() for tool in request.tools]) + str(request.shape)
    if SIGN in offered:
        found.append("the poison in a tool or in the shape of the answer")
    for text in told:
        if strange := {c for c in text if not (" " <= c <= "~" or c == "\n")}:
            found.append(f"not plain: {strange}")
        rest = QUOTED_BY_PYTHON.sub("", QUOTED.sub("", text))
        mine = REPAIRED if text.startswith("Your answer cannot be used") else re.compile("$^")
        found += [f"not quoted: {line[:200]}" for line in rest.splitlines() if SIGN in line and not mine.match(line)]
        if f"{SIGN}1337" in text:
            found.append("a template of a stranger was filled in")
    lines = [line for text in told for line in text.splitlines()]
    headings = [line for line in lines if line.startswith("# ")]
    if not {"# Goal", "# Policy", "# The model"} <= set(headings) <= HEADINGS or len(set(headings)) < len(headings):
        found.append(f"headings: {headings}")
    if sum(line.startswith("- protected tensors:") for line in lines) != 1:
        found.append("the policy stands there twice")
    if named(case):
        opening = "\n".join(told[:2]).partition("# What you looked at")[0]
        found += [f"long: {text}" for text in QUOTED.findall(opening) if SIGN in text and len(json.loads(text)) > 64]
    return found


def inside(plan, brief, model: Path) -> None:
    """Checked twice: by the planner, and by hand from the bytes."""
    assert check(plan, brief.checkpoint, brief.profile, brief.policy).problems == ()
    assert len(plan.modifications) <= OURS["most_modifications"]
    factors: dict[str, float] = {}
    for modification in plan.modifications:
        assert modification.operation.kind in OURS["operations"]
        names = resolve(modification.target, list(brief.checkpoint.tensors))
        assert names
        assert not [name for name in names if any(fnmatchcase(name, p) for p in OURS["protected"])]
        for name in names:
            assert modification.operation.kind == "scale", "no clamp of these answers is inside"
            factors[name] = factors.get(name, 1.0) * float(modification.operation.factor)
    assert len(factors) <= OURS["most_tensors"]
    weights = {tensor.name: tensor for tensor in brief.profile.tensors}
    for name, factor in factors.items():
        tensor = brief.checkpoint.tensors[name]
        assert weights[name].dtype == "BF16"
        data = (model / "model.safetensors").read_bytes()
        begin = len(data) - sum(t.nbytes for t in brief.checkpoint.tensors.values())
        before = [t.nbytes for t in list(brief.checkpoint.tensors.values())]
        start = begin + sum(before[: list(brief.checkpoint.tensors).index(name)])
        stored = np.frombuffer(data[start : start + tensor.nbytes], dtype="<u2")
        old = FLOATS["BF16"].decode(stored).astype(np.float64)
        new = FLOATS["BF16"].decode(FLOATS["BF16"].encode((old * factor).astype(np.float32))).astype(np.float64)
        assert np.linalg.norm(new - old) <= OURS["largest_relative_change"] * np.linalg.norm(old)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a checkpoint and arrays just outside of it."""
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    write_checkpoint(tmp_path / "a" / "outside", {GOOD: ("BF16", random_tensor((16, 16), seed=99))})
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "a" / "outside" / "model.safetensors").read_bytes())
    return tmp_path


def asked(case: Case, brief, *, mode: str):
    """The plan of an obedient model or None, what it was told, and what was opened."""
    evil = named(case)
    aliases = Aliases(brief.checkpoint.tensors, brief.model)
    alias = aliases.shown(evil) if evil else None
    facts = {aliases.shown(tensor.name): tensor.std for tensor in brief.profile.tensors}
    answers = [legal(case, facts, alias)] if mode == "legal" else greedy(case, facts, alias)
    client = Obedient(
        case, alias, answers, protocol="protocol" in mode, fails=mode == "legal" and case.place == "endpoint"
    )
    asking = Asking(partial="partial" in mode, repairs=2, limits=Limits(tokens=4_000_000))
    plan = None
    with listening() as opened, suppress(PlannerError):
        plan = LLMAnalyst(client, asking, record=record_of(client.name)).propose(brief)
    return plan, client.requests, opened


def record_of(model: str) -> str:
    """What a model is told of its earlier plans."""
    nothing = dict.fromkeys(("stated", "measured"), 0.5) | dict.fromkeys(("brier", "overconfidence"), None)
    return TrackRecord(
        kind="llm", model=model, plans=2, helped=1, modifications=2, interval=(0.1, 0.9), bins=(), broken=0, **nothing
    ).sentence()


def modes(case: Case) -> tuple[str, ...]:
    """How the model answers: inside the policy but for its words; and wanting everything, in one of four ways."""
    place = CASES.index(case)
    wanting = ("greedy", "greedy partial", "greedy protocol", "greedy partial protocol")[(place + place // 4) % 4]
    return ("legal", wanting) if place % 3 == 0 else ("legal",) if place % 3 == 1 else (wanting,)


def known_of(case: Case, brief, folder: Path):
    known = brief(folder, **OURS)
    return replace(known, evidence=(evidence_of(case, known.profile), None)) if case.place == "evidence" else known


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_leaves_the_policy(case, brief, place):
    model = written(place / "m", case)
    before = digests(place)
    known = known_of(case, brief, model)
    for mode in modes(case):
        plan, requests, opened = asked(case, known, mode=mode)
        assert [fault for request in requests for fault in faults(request, case)] == []
        if plan is not None:
            inside(plan, known, model)
        else:
            assert mode in ("greedy", "greedy protocol") or case.place == "endpoint" or "{" in (named(case) or "")
        assert len(requests) >= (3 if mode == "legal" else 4)
        assert [path for path in opened if "outside" in path or path.endswith("x.safetensors")] == []
    assert digests(place) == before


def test_no_path_that_a_model_names_is_opened(brief, harmless_model, place):
    for path in ("/etc", str(place / "x.safetensors")):
        operations = [
            {"kind": "blend", "checkpoint": path, "weight": 0.5},
            {"kind": "scale", "factor": {"file": path, "array": "a", "axis": "rows"}},
        ]
        for operation in operations:
            answer = {"modifications": [_wanting(GOOD, operation)]}
            client = Obedient(Case("record", "path"), None, [json.dumps(answer)])
            with listening() as opened, suppress(PlannerError):
                LLMAnalyst(client, Asking(tools=False, repairs=0)).propose(brief(harmless_model, **OURS))
            assert path not in opened


def test_an_alias_stands_for_one_tensor(brief, tmp_path):
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": ("BF16", random_tensor((16, 16), seed=n)) for n in range(2)}
    evil = "model.layers.{0-1}.mlp.up_proj.weight"
    model = write_checkpoint(tmp_path / "m", tensors | {evil: ("BF16", random_tensor((16, 16), seed=2))})
    client = Obedient(
        Case("record", "path"),
        None,
        [json.dumps({"modifications": [_wanting("t0002", {"kind": "scale", "factor": 1.05})]})],
    )
    with pytest.raises(NoValidPlan) as refused:
        LLMAnalyst(client, Asking(tools=False, repairs=0)).propose(brief(model))
    assert "no tensor matches 't0002'" in refused.value.problems[0], "and no other one is meant by it"


def _wanting(tensor: str, operation: dict[str, object]) -> dict[str, object]:
    words = {"reasoning": "r", "confidence": 0.5, "expected_impact": "e"}
    return {"id": "m01", "target": {"tensors": [tensor]}, "operation": operation, **words}


def test_there_are_enough_cases():
    assert len(set(CASES)) == len(CASES) >= 200


@pytest.fixture(scope="module")
def harmless_model(tmp_path_factory):
    return written(tmp_path_factory.mktemp("harmless"), Case("endpoint", "order"))


@pytest.mark.parametrize("kind", TEXTS)
def test_what_the_plan_says_is_shown_without_what_steers_a_terminal(kind, brief, harmless_model, planner, tmp_path):
    case = Case("record", kind)
    plan, _, _ = asked(case, brief(harmless_model, **OURS), mode="legal")
    plan = plan.model_copy(update={"analyst": plan.analyst.model_copy(update={"model": case.text[:200]})})
    path = tmp_path / "plan.json"
    path.write_bytes(write_plan(plan))
    assert read_plan(path.read_text()) == plan
    for command in (["check"], ["review", "--approve", "all", "--reviewer", "ann"]):
        result = planner(command[0], path, "--model", harmless_model, *command[1:])
        assert result.status == 0, result.err
        shown = result.out + result.err
        assert all(c.isprintable() or c == "\n" for c in shown), {c for c in shown if not c.isprintable()}
        assert not [line for line in shown.splitlines() if line.startswith("# ")]


def test_a_megabyte_of_escapes_ends_in_an_error(brief, harmless_model):
    case = Case("record", "escape")
    huge = json.dumps({"note": "\x1b[31m\u202e\\" * 60_000, "modifications": []})
    client = Obedient(case, None, [huge + "}"])
    with pytest.raises(PlannerError) as caught:
        LLMAnalyst(client, Asking(tools=False)).propose(brief(harmless_model, **OURS))
    assert len(caught.value.message) < 2000
