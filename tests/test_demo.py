"""What a newcomer runs first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from blake3 import blake3

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "examples"


def digests(folder: Path) -> dict[str, str]:
    return {str(path): blake3(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_the_demo_tells_the_whole_story_and_leaves_the_example_alone(tmp_path: Path) -> None:
    before = digests(EXAMPLES / "tiny-model")
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(EXAMPLES / "tiny-model") == before
    assert not list(tmp_path.glob("planner-*"))
    verbs = re.findall(r"^\$ planner ([\w-]+)", done.stdout, re.MULTILINE)
    assert verbs == [
        *("profile", "map", "propose", "check", "import-patch", "check", "review", "apply", "diff", "evaluate"),
        *("revert", "verify", "log", "run", "probe", "run", "propose", "check", "propose", "report"),
        *("review", "apply", "evaluate", "log", "export-patch", "apply", "diff", "revert"),
    ]
    for effect in ("m01: effective", "m02: invariant", "m03: rescales_logits", "m04: void"):
        name, _, word = effect.partition(": ")
        assert f"{word}: {name}\n" in done.stdout
    assert "would often go unseen" in done.stdout
    assert "ceiling, one factor a row or column: 0." in done.stdout
    assert "ceiling, one factor a tensor: 0.0001" in done.stdout
    assert "natural-gradient step" in done.stderr
    assert re.search(r"^evidence +kept: inventory improved", done.stdout, re.MULTILINE)
    summary = done.stdout.partition("━━ Summary")[2]
    assert "p = " in summary
    assert "95 % interval" in summary
    assert "15 of 15 files are byte for byte as before; the example was not touched" in summary
    assert len(re.findall(r"  the same$", summary, re.MULTILINE)) == 2
    assert "DIFFERENT" not in summary
    assert "Traceback" not in done.stderr


def test_the_readme_names_only_verbs_and_options_that_exist() -> None:
    from planner.cli.entry import app

    verbs = {command.name: command for command in app.registered_commands}
    text = (REPOSITORY / "README.md").read_text()
    lines = [line.split("#")[0].strip() for line in text.splitlines() if re.match(r" {4}planner ", line)]
    assert len(lines) >= 9
    for line in lines:
        _, verb, *rest = line.split()
        assert verb in verbs, line
        help_text = subprocess.run(
            [sys.executable, "-m", "planner", verb, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in (word for word in rest if word.startswith("--")):
            assert option in help_text, line
    for verb in verbs:
        assert re.search(rf"planner[ /`]*{verb}\b", text) or verb in {"schemas", "recover"}, (
            f"{verb} is not in the README"
        )


def test_the_makefile_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for target in ["demo", "test", "check", "format", "lint", "types", "floors", "schemas", "bench"]:
        assert f"make {target} " in done.stdout


def test_the_readme_lists_every_module() -> None:
    text = (REPOSITORY / "README.md").read_text()
    for path in (REPOSITORY / "planner").iterdir():
        if path.name.startswith("_") or not (path.suffix == ".py" or path.is_dir()):
            continue
        listed = path.name if path.is_file() else f"{path.name}/"
        assert f"      {listed} " in text, listed
