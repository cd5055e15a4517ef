"""Ctrl-C in every long step: status 130, one sentence, and nothing half-done."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from chat_server import ChatServer, Hang

STEPS = {
    "profile": (["profile", "MODEL", "--json"], "planner.profile.profiler:profile_checkpoint"),
    "profile, writing": (["profile", "MODEL", "--out", "TMP/new"], "planner.fsio.calls:rename"),
    "propose": (["propose", "MODEL", "--goal", "g", "--out", "TMP/n.json"], "planner.analysts.rules:drafted"),
    "propose, writing": (["propose", "MODEL", "--goal", "g", "--out", "TMP/n.json"], "planner.fsio.calls:rename"),
    "check": (["check", "PLAN", "--model", "MODEL", "--json"], "planner.effects.check:preview"),
    "review": (["review", "PLAN", "--model", "MODEL", "--reject", "all"], "planner.fsio.calls:rename"),
    "apply, checking": (["apply", "PLAN", "--model", "MODEL", "--out", "TMP/o"], "planner.effects.check:preview"),
    "apply, writing": (["apply", "PLAN", "--model", "MODEL", "--out", "TMP/o"], "planner.fsio.calls:fsync"),
    "apply, at the last moment": (["apply", "PLAN", "--model", "MODEL", "--out", "TMP/o"], "planner.fsio.calls:rename"),
    "apply in place, writing": (["apply", "PLAN", "--model", "MODEL", "--in-place"], "planner.fsio.calls:fsync"),
    "apply in place, at the last moment": (
        ["apply", "PLAN", "--model", "MODEL", "--in-place"],
        "planner.fsio:exchange_folders",
    ),
    "revert, hashing": (["revert", "PATCHED", "--json"], "os:pread"),
    "revert, writing": (["revert", "PATCHED"], "planner.fsio.calls:fsync"),
    "revert, at the last moment": (["revert", "PATCHED"], "planner.fsio:exchange_folders"),
    "verify": (["verify", "PATCHED"], "os:pread"),
    "diff": (["diff", "MODEL", "PATCHED"], "os:pread"),
    "evaluate, loading": (
        ["evaluate", "PATCHED", "--baseline", "MODEL", "--suite", "SUITE"],
        "planner.evaluation.evaluate:load_pair",
    ),
    "evaluate, measuring": (
        ["evaluate", "PATCHED", "--baseline", "MODEL", "--suite", "SUITE", "--json"],
        "planner.evaluation.evaluate:measure",
    ),
}
"""What is done, and the inner function in which Ctrl-C is pressed."""


def pressed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("arguments", "inner"), STEPS.values(), ids=STEPS)
def test_ctrl_c_stops_at_once_and_leaves_everything_as_it_was(
    planner, tiny_model, approved, tmp_path, suite, everything, monkeypatch, arguments, inner
):
    patched = tmp_path / "patched"
    assert planner("apply", approved, "--model", tiny_model, "--out", patched).status == 0
    places = {"MODEL": tiny_model, "PLAN": approved, "PATCHED": patched, "SUITE": suite(10)}
    given = [places.get(word, word.replace("TMP", str(tmp_path))) for word in arguments]
    (tmp_path / "new").mkdir()
    before = everything(tmp_path)
    with monkeypatch.context() as patch:
        module, _, name = inner.partition(":")
        patch.setattr(importlib.import_module(module), name, pressed)
        result = planner(*given)
    assert result.status == 130
    assert result.err.splitlines()[-2].startswith("error[interrupted]: ")
    assert result.err.splitlines()[-1].startswith("hint: ")
    if "--json" in given:
        assert result.json["error"]["code"] == "interrupted"
    assert everything(tmp_path) == before
    assert planner(*given).status == 0, "the same command works afterwards"


def started(*command: object) -> subprocess.Popen[str]:
    words = [sys.executable, *map(str, command)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_a_real_ctrl_c_while_an_endpoint_hangs(tiny_model, tmp_path):
    plan = tmp_path / "plan.json"
    with ChatServer([Hang()]) as server:
        options = ["--goal", "g", "--llm", "m", "--base-url", server.base_url, "--out", plan, "--json"]
        process = started("-m", "planner", "propose", tiny_model, *options)
        until(lambda: server.requests or process.poll() is not None)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert time.monotonic() - sent < 5, "it did not wait for the endpoint"
    assert err.splitlines()[-2].startswith("error[interrupted]: ")
    assert "Traceback" not in err
    assert '"code": "interrupted"' in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.transcript.json", "tiny-model"]


SIGNALLED = """
import os, signal, sys
from planner import fsio
from planner.cli import main

inner = fsio.{step}

def signalled(*given, **named):
    os.kill(os.getpid(), signal.{signal})
    return inner(*given, **named)

fsio.{step} = signalled
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("step", ["require_space", "create_file", "exchange_folders"])
def test_a_real_ctrl_c_in_the_middle_of_apply(tiny_model, approved, tmp_path, everything, step):
    before = everything(tmp_path)
    script = tmp_path.with_name(f"{tmp_path.name}.py")
    script.write_text(SIGNALLED.format(step=step, signal="SIGINT"))
    process = started(script, "apply", approved, "--model", tiny_model, "--in-place")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error[interrupted]", "hint"]
    assert everything(tmp_path) == before


def test_a_killed_apply_leaves_what_the_next_command_removes(planner, tiny_model, approved, tmp_path, everything):
    before = everything(tmp_path)
    script = tmp_path.with_name(f"{tmp_path.name}.py")
    script.write_text(SIGNALLED.format(step="publish_folder", signal="SIGKILL"))
    process = started(script, "apply", approved, "--model", tiny_model, "--out", tmp_path / "out")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert everything(tmp_path) != before
    found = planner("recover", tmp_path / "out", "--json")
    assert found.status == 0
    assert len(found.json["removed"]) == 1
    assert everything(tmp_path) == before


def test_ctrl_c_and_end_of_input_at_a_question(planner, tiny_model, proposed, monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = proposed.read_bytes()
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    ended = planner("review", proposed, "--model", tiny_model)
    assert ended.status == 130
    monkeypatch.setattr("builtins.input", pressed)
    interrupted = planner("review", proposed, "--model", tiny_model)
    assert interrupted.status == 130
    assert "error[interrupted]" in interrupted.err
    assert proposed.read_bytes() == before


def test_the_plan_of_a_stopped_request_is_not_written(tiny_model, tmp_path, planner, monkeypatch):
    monkeypatch.setattr("planner.llm.openai_compatible.OpenAICompatibleClient.complete", pressed)
    options = ["--llm", "m", "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "plan.json"]
    assert planner("propose", tiny_model, "--goal", "g", *options).status == 130
    assert not (tmp_path / "plan.json").exists()


def test_this_process_still_answers_to_ctrl_c():
    """The planner installs no handler of its own that outlives a command."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
