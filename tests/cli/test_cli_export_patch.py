"""A patch given away as one file: exported, signed, applied elsewhere, under the limits of who applies it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from key_files import allowed_line, shared_key_file, ssh_key_file


@pytest.fixture
def patched(planner: Callable[..., Any], tiny_model: Path, approved: Path, tmp_path: Path) -> Path:
    """The bundled model with the plan of the rules applied."""
    assert planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "patched").status == 0
    return tmp_path / "patched"


@pytest.fixture
def patch(planner: Callable[..., Any], patched: Path, tmp_path: Path) -> Path:
    """It, exported."""
    assert planner("export-patch", patched, "--out", tmp_path / "model.patch").status == 0
    return tmp_path / "model.patch"


@pytest.fixture
def put(
    planner: Callable[..., Any], tiny_model: Path, tmp_path: Path, patch: Path, everything: Callable[..., Any]
) -> Callable[..., Any]:
    """`planner apply` of the patch to a new folder; nothing is left where that is refused."""

    def run(*arguments: object) -> Any:
        before = everything(tmp_path)
        result = planner("apply", patch, "--model", tiny_model, "--out", tmp_path / "out", *arguments)
        if result.status:
            assert everything(tmp_path) == before
        return result

    return run


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., Path]:
    """A policy file from its lines."""

    def write(*lines: str) -> Path:
        (tmp_path / "policy.toml").write_text("".join(f"{line}\n" for line in lines))
        return tmp_path / "policy.toml"

    return write


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints are the same but for their histories."""
    command = ["diff", "-r", "-x", ".planner", str(one), str(other)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def refused(result: Any, status: int, code: str, *words: str) -> None:
    lines = result.err.splitlines()
    assert result.status == status, result.err
    assert any(line.startswith(f"error[{code}]: ") for line in lines), result.err
    assert lines[-1].startswith("hint: ")
    for word in words:
        assert word in result.err


def test_from_one_machine_to_another(planner, patched, patch, put, tiny_model, tmp_path):
    result = put()
    assert result.status == 0, result.err
    assert "the patch is not signed: its bytes are taken as they are" in result.err
    assert f"take it back: planner revert {tmp_path / 'out'}" in result.err
    assert same(tmp_path / "out", patched)
    assert planner("verify", tmp_path / "out").status == 0
    assert planner("revert", tmp_path / "out").status == 0
    assert same(tmp_path / "out", tiny_model)


def test_what_export_says(planner, patched, tmp_path, everything):
    result = planner("export-patch", patched, "--out", tmp_path / "a b.patch", "--json")
    assert result.status == 0
    found = result.json
    assert found["schema"] == "planner/exported@1"
    assert found["path"] == str(tmp_path / "a b.patch")
    assert found["bytes"] == (tmp_path / "a b.patch").stat().st_size < found["changed_bytes"]
    receipt = json.loads((patched / ".planner" / "patches" / "0001" / "receipt.json").read_text())
    assert found["changed_bytes"] == receipt["changed_bytes"]
    assert found["tensors"] == len(receipt["tensors"])
    assert found["signed"] is False
    assert f"planner apply '{tmp_path / 'a b.patch'}' --model BASE" in result.err
    before = everything(tmp_path)
    refused(planner("export-patch", patched, "--out", tmp_path / "a b.patch"), 2, "output-exists")
    refused(planner("export-patch", patched, "--out", tmp_path / "n", "--patch", 3), 2, "patch-missing")
    refused(planner("export-patch", patched, "--out", tmp_path / "no" / "n"), 7, "storage")
    refused(planner("export-patch", tmp_path, "--out", tmp_path / "n"), 2, "patch-missing")
    assert everything(tmp_path) == before


def test_options_of_plans_are_not_for_patches(put):
    refused(put("--yes"), 2, "usage", "are for plans")
    refused(put("--allow-void"), 2, "usage", "are for plans")


def test_the_operators_policy_applies(put, policy, monkeypatch):
    monkeypatch.setenv("PLANNER_POLICY", str(policy("largest_relative_change = 0.000001")))
    refused(put(), 3, "plan-refused", "the policy does not allow the patch", "of its norm, beyond 1e-06")
    monkeypatch.setenv("PLANNER_POLICY", str(policy('protected = ["*"]')))
    refused(put(), 3, "plan-refused", "protected by the policy")
    monkeypatch.setenv("PLANNER_POLICY", str(policy('operations = ["rotate"]')))
    refused(put(), 3, "plan-refused", "not among the operations allowed")
    monkeypatch.setenv("PLANNER_POLICY", str(policy("signed_approval = true")))
    refused(put(), 3, "signature-refused", "there is no", ".sig")


def test_signed_with_an_openssh_key(planner, patched, patch, put, policy, tmp_path):
    ann, eve = ssh_key_file(tmp_path / "ann"), ssh_key_file(tmp_path / "eve")
    asked = policy("signed_approval = true", f"allowed_signers = ['{allowed_line(ann, 'ann@example.com')}']")
    signature = tmp_path / "model.patch.sig"

    def sign(key: Path) -> None:
        for path in (patch, signature):
            path.unlink(missing_ok=True)
        assert planner("export-patch", patched, "--out", patch, "--sign", key).status == 0

    refused(put("--policy", asked), 3, "signature-refused", "there is no")
    sign(eve)
    refused(put("--policy", asked), 3, "signature-refused")
    eves = signature.read_text()
    sign(ann)
    good = signature.read_text()
    signature.write_text(eves)
    refused(put("--policy", asked), 3, "signature-refused")
    claimed = json.loads(eves) | {"signer": json.loads(good)["signer"]}
    signature.write_text(json.dumps(claimed))
    refused(put("--policy", asked), 3, "signature-refused")
    signature.write_text(good)
    for place in (100, patch.stat().st_size // 2, patch.stat().st_size - 1):
        raw = bytearray(patch.read_bytes())
        raw[place] ^= 1
        other = tmp_path / "edited.patch"
        other.write_bytes(raw)
        shutil.copy(signature, tmp_path / "edited.patch.sig")
        result = planner("apply", other, "--model", tmp_path / "tiny-model", "--out", tmp_path / "x", "--policy", asked)
        assert result.status == 3, result.err
        assert not (tmp_path / "x").exists()
    refused(put("--policy", policy("signed_approval = true")), 3, "signature-refused", "names nobody who may sign")
    signature.write_text("{}")
    refused(put(), 2, "file-unreadable", "is no signature")
    signature.write_text(good)
    result = put("--policy", policy("signed_approval = true", asked_line(ann)))
    assert result.status == 0, result.err
    assert "patch signed by ann@example.com" in result.err
    receipt = json.loads((tmp_path / "out" / ".planner" / "patches" / "0001" / "receipt.json").read_text())
    assert receipt["signed_by"] == "ann@example.com"


def asked_line(key: Path) -> str:
    return f"allowed_signers = ['{allowed_line(key, 'ann@example.com')}']"


def test_signed_with_a_shared_key(planner, patched, put, policy, tmp_path):
    key, other = shared_key_file(tmp_path / "key"), shared_key_file(tmp_path / "other")
    (tmp_path / "model.patch").unlink()
    result = planner("export-patch", patched, "--out", tmp_path / "model.patch", "--sign", key, "--json")
    assert result.json["signed"] is True
    assert result.json["signer"].startswith("hmac-sha256:")
    asked = policy("signed_approval = true")
    refused(put("--policy", asked), 3, "signature-refused", "no key was given")
    refused(put("--policy", asked, "--approval-key", other), 3, "signature-refused")
    path = tmp_path / "model.patch.sig"
    signature = json.loads(path.read_text())
    path.write_text(json.dumps(signature | {"value": "0" * 64}))
    refused(put("--policy", asked, "--approval-key", key), 3, "signature-refused", "not of this")
    path.write_text(json.dumps(signature))
    assert "patch signed by hmac-sha256:" in put("--policy", asked, "--approval-key", key).err


def test_what_cannot_be_signed_is_not_left_behind_unsigned(planner, patched, tmp_path, everything):
    short = shared_key_file(tmp_path / "short", b"short")
    (tmp_path / "taken.patch.sig").write_text("of another one")
    before = everything(tmp_path)
    refused(planner("export-patch", patched, "--out", tmp_path / "n", "--sign", short), 2, "signing-key-unusable")
    refused(planner("export-patch", patched, "--out", tmp_path / "taken.patch"), 2, "output-exists", "taken.patch.sig")
    assert everything(tmp_path) == before


# -- the same result on another machine --------------------------------------------------------------------------------

ANOTHER = {
    "OPENBLAS_CORETYPE": "Nehalem",
    "OPENBLAS_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX,-FMA,-FMA4",
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "",
    "NUMBA_NUM_THREADS": "1",
}


def test_a_receipt_from_elsewhere_is_reproduced_or_nothing_is_written(
    planner, patched, approved, tiny_model, tmp_path, everything
):
    receipt = patched / ".planner" / "patches" / "0001" / "receipt.json"
    words = ["apply", approved, "--model", tiny_model, "--expect", receipt, "--out"]
    environment = os.environ | ANOTHER | {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    script = "import sys; from planner.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, [*words, tmp_path / "there"])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "there", patched)
    found = json.loads(receipt.read_text())
    wrong = tmp_path / "wrong.json"
    edits: list[Callable[[dict[str, Any]], object]] = [
        lambda r: r["tensors"][0].update(after="blake3:" + "0" * 64),
        lambda r: r["tensors"].pop(),
        lambda r: r.update(fingerprint_after="blake3:" + "0" * 64),
    ]
    for edit in edits:
        other = json.loads(json.dumps(found))
        edit(other)
        wrong.write_text(json.dumps(other))
        for place in (["--out", tmp_path / "x"], ["--in-place"], ["--in-place", "--low-space"]):
            before = everything(tmp_path)
            result = planner("apply", approved, "--model", tiny_model, "--expect", wrong, *place)
            refused(result, 7, "result-differs", "nothing was changed")
            assert everything(tmp_path) == before
    wrong.write_text("{}")
    refused(planner("apply", approved, "--model", tiny_model, "--expect", wrong, "--in-place"), 2, "file-unreadable")
    assert planner("apply", approved, "--model", tiny_model, "--expect", receipt, "--in-place").status == 0
