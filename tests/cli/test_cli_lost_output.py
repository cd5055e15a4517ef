"""Output that cannot be written and Ctrl-C at bad moments: a change that was made never looks like one that failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from builders import a_plan, random_tensor, write_checkpoint

from planner.plan import decide, write_plan
from planner.transaction import read_ledger, verify

STREAMS = [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"]


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model", {"a.weight": ("BF16", random_tensor((8, 8)))})


@pytest.fixture
def plan(model, tmp_path):
    made = a_plan(model, {"target": {"tensors": ["a.weight"]}, "operation": {"kind": "scale", "factor": 1.5}})
    path = tmp_path / "plan.json"
    path.write_bytes(write_plan(decide(made, ["m01"], "approved", reviewer="ann")))
    return path


@pytest.mark.parametrize("redirection", STREAMS)
def test_a_change_is_made_whatever_becomes_of_the_output_and_the_status_is_that_of_the_output(model, plan, redirection):
    for command, in_force in ((f"apply {plan} --model {model} --in-place", (1,)), (f"revert {model}", ())):
        line = f"{sys.executable} -m planner {command} {redirection}"
        done = subprocess.run(["/bin/bash", "-c", line], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr
        assert done.returncode == (7 if redirection.startswith(">/dev/full") else 0)
        ledger = read_ledger(model)
        assert ledger is not None
        assert ledger.in_force == in_force
        assert verify(model).sound, "no message went into a file"
        if redirection == ">/dev/full":
            error, hint = done.stderr.splitlines()
            assert error.startswith("error[storage]: the change was made, but the output could not be written: ")
            assert hint == f"hint: `planner log {model}` shows it"


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_ctrl_c_after_the_change_says_that_it_was_made(planner, model, plan, monkeypatch, verb):
    from planner.cli.console import Screen

    def pressed(*_, **__):
        raise KeyboardInterrupt

    commands = {"apply": ["apply", plan, "--model", model, "--in-place"], "revert": ["revert", model]}
    if verb == "revert":
        assert planner(*commands["apply"]).status == 0
    with monkeypatch.context() as patch:
        patch.setattr(Screen, "show", pressed)
        result = planner(*commands[verb])
    assert result.status == 130
    assert "the change had been made already" in result.err
    assert "run the command again" not in result.err, "that would change the checkpoint twice"
    assert f"planner log {model}" in result.err


IMPATIENT = """
import os, signal, sys, time
from planner.cli import entry

def once_more(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # Python hears it between two steps
    return told(*_)

def pressed(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)

told, entry._told = entry._told, once_more
if sys.argv[1] == "before":  # before the first is being reported
    def begin(self):
        entry._Deaf.begin = begun
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    begun, entry._Deaf.begin = entry._Deaf.begin, begin
import planner.transaction
planner.transaction.read_ledger = pressed
sys.argv[1:] = ["log", sys.argv[2]]
sys.exit(entry.main())
"""


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_second_ctrl_c_while_the_first_is_reported_is_no_traceback(model, moment):
    command = [sys.executable, "-c", IMPATIENT, moment, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "error[interrupted]: stopped; nothing is half-done\nhint: run the command again\n"


def test_a_command_inside_of_another_program_leaves_ctrl_c_as_it_was(planner, model, monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.transaction.read_ledger", pressed)
    before = signal.getsignal(signal.SIGINT)
    assert planner("log", model).status == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_what_the_transaction_says_of_a_ctrl_c_is_said_as_it_is(planner, model, monkeypatch):
    from planner.errors import Interrupted

    def raised(*_, **__):
        raise Interrupted("stopped, after the last step", hint="nothing is left to do")

    monkeypatch.setattr("planner.transaction.revert", raised)
    result = planner("revert", model)
    assert result.status == 130
    assert result.err == "error[interrupted]: stopped, after the last step\nhint: nothing is left to do\n"


def test_talk_that_nobody_can_hear_stops_nothing(model):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "planner", "log", str(model)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, text=True, timeout=60, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 0
    assert "has no history" in done.stdout
