"""Where output goes: the screen, the terminal, and what `--help` does not load."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from planner.cli.console import Screen, plain

VERBS = (
    *("profile", "propose", "check", "review", "apply", "log", "verify", "revert", "recover", "diff", "evaluate"),
    *("run", "schemas"),
)
HEAVY = (
    *("numpy", "numba", "zstandard", "torch", "transformers"),
    *("litellm", "openai", "httpx", "fastapi", "rich", "pydantic"),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_help_lists_every_verb(planner):
    listed = planner("--help")
    assert listed.status == 0
    assert listed.err == ""
    words = listed.out.partition("Commands:")[2].split()
    assert all(verb in words for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_for_itself_and_for_every_option(planner, verb):
    found = planner(verb, "--help")
    assert found.status == 0
    assert found.err == ""
    assert f"planner {verb} " in found.out
    for entry in found.out.partition("Options:")[2].splitlines():
        if entry.startswith("  -"):
            assert len(entry.split("  ")) > 2 or len(entry) > 24, f"{verb}: {entry} is not explained"


@pytest.mark.parametrize("arguments", [["--help"], ["profile", "--help"], ["--version"]])
def test_help_loads_no_heavy_library(arguments):
    script = "import sys; from planner.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    loaded = {name.partition(".")[0] for name in found.stderr.split()}
    allowed = {"pydantic", "rich"}  # typer's own
    assert not loaded & (set(HEAVY) - allowed)


def test_a_terminal_gets_a_progress_bar_on_stderr_and_plain_results_on_stdout(tiny_model, monkeypatch, capsys):
    from planner.cli import main

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["profile", str(tiny_model), "--json"]) == 0
    assert "\x1b[" in screen.getvalue()
    assert json.loads(capsys.readouterr().out)["parameters"] == 652_896


@pytest.mark.parametrize("unit", ["bytes", "tokens"])
def test_a_bar_moves_by_counts_and_by_totals(monkeypatch, unit):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with Screen().progress("working", 10, unit=unit) as bar:
        bar.advance(1)
        bar.step("another step", 5, 10)
        bar.set(10, 10)
    assert "another step" in terminal.getvalue()


def test_a_narrow_terminal_leaves_columns_out_and_says_so(monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    Screen().table(("name", "wide", "number"), [("n" * 20, "w" * 20, "123456")], spare=("wide",))
    assert "123456" in out.getvalue()
    assert "www" not in out.getvalue()
    assert "wide" in err.getvalue()


def test_a_screen_for_programs_shows_people_nothing_on_stdout(capsys):
    screen = Screen(as_json=True)
    screen.show("a line")
    screen.table(("a",), [("b",)])
    screen.say("talk")
    screen.emit({"name": "\x9b\u202e", "number": 1})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "\x9b\u202e", "number": 1}
    assert captured.out.isascii(), "no character of a stranger's reaches the terminal this way either"
    assert captured.err == "talk\n"


def test_markup_in_a_name_is_text(capsys):
    screen = Screen()
    screen.show("[bold]not bold[/bold] :smile:")
    screen.table(("a",), [("[red]cell[/red]",)])
    out = capsys.readouterr().out
    assert "[bold]not bold[/bold] :smile:" in out
    assert "[red]cell[/red]" in out


def test_numbers_that_json_has_no_word_for_are_never_printed(capsys):
    with pytest.raises(ValueError):
        Screen(as_json=True).emit({"x": float("nan")})


@pytest.mark.parametrize("c", ["\x00", "\x1b", "\n", "\r", "\x7f", "\x9b", "\u202e", "\u2028", "\u200f", "\ud800"])
def test_plain_leaves_no_character_that_steers_a_terminal(c):
    assert plain(f"a{c}b").isprintable()
    assert plain("naïve 漢字 ✓") == "naïve 漢字 ✓"
