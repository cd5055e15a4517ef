"""From what the user typed to a folder: paths, ids, revisions, the hub cache."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import random_tensor, write_checkpoint

from planner.checkpoint import in_hub_cache, locate, open_checkpoint
from planner.checkpoint.sources import hub_cache
from planner.errors import FileUnreadable, NotACheckpoint

OLD, NEW = "0" * 40, "a" * 40
OFFLINE = {"PLANNER_OFFLINE": "1"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache as the hub's own library lays it out: two commits of org/model, files as links into blobs."""
    cache = tmp_path / "home" / "hub"
    repository = cache / "models--org--model"
    for number, commit in enumerate((OLD, NEW)):
        plain = write_checkpoint(tmp_path / f"plain{number}", {"w": ("BF16", random_tensor((2, 2), seed=number))})
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        for file in plain.iterdir():
            blob = repository / "blobs" / f"{commit[:8]}{file.name}"
            file.rename(blob)
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    refs = {"main": NEW, "v1.0": OLD, "refs/pr/7": OLD}
    for name, commit in refs.items():
        path = repository / "refs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return cache


def snapshot(cache: Path, commit: str) -> Path:
    return cache / "models--org--model" / "snapshots" / commit


@pytest.mark.parametrize(
    ("model", "commit"),
    [
        ("org/model", NEW),
        ("org/model@main", NEW),
        ("org/model@v1.0", OLD),
        ("org/model@refs/pr/7", OLD),
        (f"org/model@{OLD}", OLD),
        (f"org/model@{NEW}", NEW),
    ],
)
def test_an_id_is_found_in_the_cache_by_branch_tag_pull_request_and_commit(
    model: str, commit: str, cache: Path
) -> None:
    found = locate(model, environment=OFFLINE | {"HF_HUB_CACHE": str(cache)})
    assert found == snapshot(cache, commit)
    checkpoint = open_checkpoint(found)
    assert checkpoint.name == "org/model"
    assert list(checkpoint.tensors) == ["w"]
    assert in_hub_cache(found)


def test_an_id_without_an_owner_is_found_in_the_cache_too(cache: Path) -> None:
    (cache / "models--org--model").rename(cache / "models--gpt2")
    found = locate("gpt2", environment=OFFLINE | {"HF_HUB_CACHE": str(cache)})
    assert open_checkpoint(found).name == "gpt2"


def test_the_cache_is_where_the_hubs_library_keeps_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cache.parent
    assert locate("org/model", environment=OFFLINE | {"HF_HOME": str(home)}) == snapshot(cache, NEW)
    assert hub_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    monkeypatch.setenv("HOME", "/home/someone")
    assert hub_cache({}) == Path("/home/someone/.cache/huggingface/hub")
    assert hub_cache({"HF_HOME": "~/hf"}) == Path("/home/someone/hf/hub")


@pytest.mark.parametrize("switch", ["PLANNER_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("model", ["org/other", "org/model@v2", f"org/model@{'b' * 40}", "nosuchfolder"])
def test_what_is_not_in_the_cache_is_refused_offline(switch: str, model: str, cache: Path) -> None:
    with pytest.raises(NotACheckpoint, match="neither a folder nor in the hub cache") as refused:
        locate(model, environment={switch: "true", "HF_HUB_CACHE": str(cache)})
    assert refused.value.exit_status == 9
    assert "switched off" in refused.value.hint


@pytest.mark.parametrize(
    "model", ["a b/c", "org/model/extra", "../model", "./nowhere", "/no/such/folder", "~nobody-here/model", "x" * 5000]
)
def test_what_is_neither_a_path_nor_an_id_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotACheckpoint):
        locate(model, environment=OFFLINE | {"HF_HUB_CACHE": str(tmp_path)})


@pytest.mark.parametrize(
    "revision", ["..", "../..", "../../../outside", "/etc", "refs/pr", "refs", "a/../../../outside"]
)
def test_a_revision_never_leads_out_of_the_snapshots(revision: str, cache: Path) -> None:
    (cache.parent / "outside").mkdir()
    with pytest.raises(NotACheckpoint):
        locate(f"org/model@{revision}", environment=OFFLINE | {"HF_HUB_CACHE": str(cache)})


@pytest.mark.parametrize("commit", [b"", b"../../..", b"/tmp", b"..", b"\xff\xfe", b"\0"])
def test_a_damaged_ref_finds_nothing(commit: bytes, cache: Path) -> None:
    (cache / "models--org--model" / "refs" / "main").write_bytes(commit)
    with pytest.raises(NotACheckpoint):
        locate("org/model", environment=OFFLINE | {"HF_HUB_CACHE": str(cache)})


def test_a_folder_goes_before_an_id_and_keeps_the_name_the_user_gave_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").symlink_to(tmp_path / "real")
    assert locate("org/model", environment={"HF_HUB_CACHE": str(cache)}) == tmp_path / "org" / "model"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model", environment=OFFLINE) == tmp_path / "model"


def test_a_folder_of_ones_own_is_not_the_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "mine"
    folder.mkdir(parents=True)
    assert not in_hub_cache(folder)
    assert not in_hub_cache(tmp_path)


def test_a_folder_that_may_not_be_looked_at_is_left_to_whoever_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    assert locate("secret/model", environment=OFFLINE) == Path.cwd() / "secret" / "model"
    with pytest.raises(FileUnreadable, match="Permission denied"):
        open_checkpoint(tmp_path / "secret")


# Where the network is allowed, the hub's own library fetches


def test_an_id_that_is_not_cached_is_fetched_in_the_asked_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def snapshot_download(identifier: str, **options: object) -> str:
        asked.update(options, identifier=identifier)
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert locate("org/new@v3", environment={"HF_HUB_CACHE": str(tmp_path / "c")}) == tmp_path
    assert (asked["identifier"], asked["revision"], asked["cache_dir"]) == ("org/new", "v3", tmp_path / "c")
    assert not any(pattern in {"*", "*.bin", "*.pt"} for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError(), ValueError("x" * 5000)])
def test_a_fetch_that_fails_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(NotACheckpoint, match="fetching it failed") as refused:
        locate("org/new", environment={"HF_HUB_CACHE": str(tmp_path)})
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 1000


def test_without_the_hubs_library_the_hint_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NotACheckpoint) as refused:
        locate("org/new", environment={"HF_HUB_CACHE": str(tmp_path)})
    assert "pip install huggingface_hub" in refused.value.hint


def test_a_bare_word_is_a_mistyped_folder_and_is_not_asked_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NotACheckpoint, match="neither a folder nor") as refused:
        locate("tinymodel", environment={"HF_HUB_CACHE": str(tmp_path)})
    assert "org/name" in refused.value.hint


def test_a_path_mistyped_below_a_folder_that_exists_is_no_model_id(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotACheckpoint, match="models/my-modle does not exist"):
        locate("models/my-modle")


def test_a_snapshot_of_a_cache_without_links_is_a_hub_cache_too(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert in_hub_cache(snapshot)
