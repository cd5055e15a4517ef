"""What every module of the planner keeps to, read from the source."""

from __future__ import annotations

import ast
import inspect
import re
import site
from pathlib import Path

import pytest

from planner import errors
from planner.cli import entry

PACKAGE = Path(__file__).parents[2] / "planner"
MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [path.relative_to(PACKAGE).as_posix() for path in MODULES]
PICKLES = {"pickle", "cPickle", "_pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """Every call with its dotted name, as far as it has one."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def pickles_in(tree: ast.Module) -> set[str]:
    found = {name for name in imports(tree) if name.partition(".")[0] in PICKLES}
    return found | {name for name, _ in calls(tree) if re.search(r"\b(torch|np|numpy)\.load$|\bpickle\.", name)}


WRITING_CALLS = re.compile(
    r"(^|\.)(write_text|write_bytes|touch|mkdir|makedirs|rmdir|rmtree|unlink|rename|renames|replace_with|symlink_to"
    r"|hardlink_to|copyfile|copytree|copy2|move|truncate|ftruncate|save_file|savez?|mkstemp|mkdtemp)$"
)
WRITING_OS = re.compile(
    r"^os\.(open|p?writev?|rename|replace|remove|unlink|link|symlink|mkdir|mkfifo|f?chmod|[fl]?chown|utime"
    r"|setxattr|removexattr|posix_fallocate|fsync|fdatasync)$"
)


def writes_in(tree: ast.Module) -> list[str]:
    found = []
    for name, call in calls(tree):
        if name.rpartition(".")[0] == "fsio":
            continue
        words = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        modes = [word for word in words if isinstance(word, str) and re.fullmatch(r"[rwxabt+]{1,4}", word)]
        if name.rpartition(".")[2] == "open" and name != "os.open":
            writes = any(set(mode) & set("wxa+") for mode in modes)
        else:
            reads = "O_RDONLY" in ast.unparse(call)
            writes = bool(WRITING_CALLS.search(name) or WRITING_OS.match(name)) and not reads
        if writes:
            found.append(f"{name} in line {call.lineno}")
    return found + [name for name in imports(tree) if name.partition(".")[0] in {"shutil", "tempfile"}]


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_nothing_opens_a_pickle(path):
    assert not pickles_in(tree_of(path))


# No files: where output goes once nobody reads it, and the pipes through which ssh-keygen is fed.
EXCEPTIONS = {"cli/entry.py": ["os.open"], "signing/openssh.py": ["os.write", "shutil"]}


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_only_one_package_writes_files(path):
    """And in it only one module, which the tests put a failing disk in the place of; the others call that one."""
    name = path.relative_to(PACKAGE).as_posix()
    found = writes_in(tree_of(path))
    if name == "fsio/calls.py":
        assert len(found) >= 15, "the scan sees what it looks for"
    else:
        if name.startswith("fsio/"):
            found = [call for call in found if not call.startswith("calls.")]
        assert [call.partition(" ")[0] for call in found] == EXCEPTIONS.get(name, [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import marshal",
        "import torch\ntorch.load('x')",
        "numpy.load('x')",
    ],
)
def test_the_scan_for_pickles_sees_them(source):
    assert pickles_in(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "open('x', 'w')",
        "open('x', mode='ab')",
        "path.open('r+')",
        "path.write_text('x')",
        "os.rename(a, b)",
        "os.open(p, os.O_WRONLY)",
        "os.pwrite(descriptor, data, 0)",
        "os.setxattr(p, 'user.x', b'')",
        "import shutil",
        "from tempfile import mkdtemp",
    ],
)
def test_the_scan_for_writes_sees_them(source):
    assert writes_in(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["open('file')", "path.open('rb')", "os.open(p, os.O_RDONLY)", "fsio.replace_file(p)"]
)
def test_the_scan_for_writes_lets_reading_pass(source):
    assert not writes_in(ast.parse(source))


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_module_says_what_it_is_and_what_it_offers(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), "no docstring"
    assert len(path.read_text().splitlines()) <= 400, "too long"
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    verb = path.parent.name == "cli" and "command" in functions
    assert "__all__" in assigned or verb or path.name in ("__main__.py",) or path == PACKAGE / "__init__.py"


def test_every_verb_is_a_module_with_one_command_and_a_short_help():
    verbs = {
        path.stem.replace("_", "-")
        for path in (PACKAGE / "cli").glob("*.py")
        if "\ndef command(" in path.read_text(encoding="utf-8")
    }
    registered = {command.name: command for command in entry.app.registered_commands}
    assert verbs == registered.keys()
    for command in registered.values():
        assert command.short_help
        assert inspect.getdoc(command.callback)


def tree_of_errors() -> list[type[errors.PlannerError]]:
    found: list[type[errors.PlannerError]] = [errors.PlannerError]
    for kind in found:
        found += [below for below in kind.__subclasses__() if below.__module__ == errors.__name__]
    return found


STATUSES = {
    **{errors.UsageError: 2, errors.PlanRefused: 3, errors.StalePlan: 4, errors.GateRefused: 5},
    **{errors.AnalystFailed: 6, errors.StorageError: 7, errors.Locked: 8, errors.CheckpointError: 9},
    errors.Interrupted: 130,
}


def test_every_error_has_a_code_of_its_own_and_the_status_of_its_branch():
    kinds = tree_of_errors()
    assert sorted(kind.__name__ for kind in kinds) == sorted(errors.__all__)
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert re.fullmatch("[a-z]+(-[a-z]+)*", kind.code)
        assert "code" in vars(kind), f"{kind.__name__} has no code of its own"
        assert inspect.getdoc(kind)
        branch = [root for root in STATUSES if issubclass(kind, root)]
        assert kind.exit_status == (STATUSES[branch[0]] if branch else 1)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert errors.__doc__
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    (?P<branches>[│├└─ ]*)(?P<name>[A-Z]\w+) {2,}", line)
        if found:
            depth = len(found["branches"]) // 4
            path[depth:] = [found["name"]]
            drawn[found["name"]] = path[depth - 1] if depth else None
    actual = {kind.__name__: kind.__base__.__name__ for kind in tree_of_errors() if kind.__base__}
    assert drawn == actual | {"PlannerError": None}
    for kind, status in STATUSES.items():
        assert re.search(rf"{kind.__name__} +{status} ", errors.__doc__), f"{kind.__name__} is not drawn with {status}"


def test_no_other_module_defines_errors_for_users():
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert not bases & set(errors.__all__), f"{path}: {node.name}"


def test_nothing_runs_at_every_start_of_the_interpreter_that_nobody_put_there():
    """A release of litellm that had been taken over left a .pth file, whose lines Python runs whenever it starts."""
    known = {"_virtualenv.pth", "a1_coverage.pth", "distutils-precedence.pth", "pytest-cov.pth"}
    found = {path.name for folder in site.getsitepackages() for path in Path(folder).glob("*.pth")}
    assert {name for name in found if not name.startswith(("_editable_impl_", "__editable__"))} <= known
