"""What `pip install` gives: complete without the repository, small, and the same from a zip file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer

REPOSITORY = Path(__file__).parents[2]

RUN = """
import sys
place, repository = sys.argv[1:3]
sys.path[:] = [place, *(entry for entry in sys.path if entry not in ("", repository))]
import planner
assert planner.__file__.startswith(place), planner.__file__
from planner.cli import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(params=["installed", "wheel"], ids=["installed", "from the zip"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path):
    """Run a command with the wheel's planner, in a folder that knows nothing of the repository."""
    place = request.getfixturevalue(request.param)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RUN, str(place), str(REPOSITORY), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def test_it_holds_prompts_and_schemas_and_nothing_for_developers(wheel):
    assert wheel.stat().st_size < 2_000_000
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {entry for entry in top if not entry.endswith(".dist-info")} == {"planner"}
    for prompt in (REPOSITORY / "prompts").iterdir():
        assert f"planner/_data/prompts/{prompt.name}" in names
    for schema in (REPOSITORY / "schemas").glob("*.schema.json"):
        assert f"planner/_data/schemas/{schema.name}" in names
    for module in (REPOSITORY / "planner").rglob("*.py"):
        assert module.relative_to(REPOSITORY).as_posix() in names
    assert not [name for name in names if name.endswith((".pyc", ".safetensors")) or "test" in name.lower()]
    assert any(name.endswith("LICENSE") for name in names)


def test_its_name_and_version_are_those_of_the_package(wheel):
    from planner import __version__

    assert wheel.name == f"model_patch_planner-{__version__}-py3-none-any.whl"
    metadata = zipfile.ZipFile(wheel).read(f"model_patch_planner-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    scripts = zipfile.ZipFile(wheel).read(f"model_patch_planner-{__version__}.dist-info/entry_points.txt").decode()
    assert "planner = planner.cli:main" in scripts


def test_help(elsewhere):
    found = elsewhere("--help")
    assert found.returncode == 0, found.stderr
    assert "profile" in found.stdout


def test_a_plan_of_the_rules(elsewhere, tiny_model, tmp_path):
    found = elsewhere("propose", tiny_model, "--goal", "g", "--out", "plan.json", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == json.loads((tmp_path / "plan.json").read_text())


def test_a_plan_of_a_model_with_the_prompts_that_are_packed(elsewhere, tiny_model, tmp_path):
    from planner.analysts.prompts import prompts_sha256

    with ChatServer([Answer('{"note": "all is well", "modifications": []}')]) as server:
        options = ["--llm", "m", "--base-url", server.base_url, "--out", "plan.json"]
        found = elsewhere("propose", tiny_model, "--goal", "g", *options)
    assert found.returncode == 0, found.stderr
    assert "all is well" in found.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["analyst"]["prompt_sha256"] == prompts_sha256(), "the same words as in the repository"


def test_the_editable_install_works_from_any_folder(tiny_model, tmp_path):
    command = [sys.executable, "-m", "planner", "propose", str(tiny_model), "--goal", "g"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=os.environ)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "plan.json").is_file()


def test_the_console_script_is_the_same_program(tmp_path):
    script = Path(sys.executable).with_name("planner")
    if not script.exists():
        pytest.skip("the package is not installed with its script")
    found = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0
    assert found.stdout.startswith("planner ")
