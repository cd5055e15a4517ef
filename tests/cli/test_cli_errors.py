"""Every way to fail that a user can cause: the status, the two lines on stderr and the JSON document."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import a_plan, random_tensor, write_checkpoint, write_shard
from chat_server import ChatServer, Status

from planner import fsio
from planner.plan import write_plan


def failed(result, status: int, code: str, *words: str):
    """The command failed as the contract says, for a person and, with --json, for a program."""
    assert "Traceback" not in result.out + result.err
    lines = result.err.splitlines()
    errors = [line for line in lines if line.startswith("error[")]
    assert len(errors) == 1, result.err
    assert errors[0].startswith(f"error[{code}]: "), errors[0]
    assert len(errors[0]) > len(f"error[{code}]: ")
    assert [line for line in lines if line.startswith("hint: ") and len(line) > 6], "no hint"
    for word in words:
        assert word in result.err, f"{word!r} is not in {result.err!r}"
    assert result.status == status, result.err
    if result.out.startswith("{"):
        error = result.json["error"]
        assert error["code"] == code
        assert f"error[{code}]: {error['message'].splitlines()[0]}" == errors[0]
        assert f"hint: {error['hint']}" in lines
        assert {type(error["message"]), type(error["hint"])} == {str}


# -- checkpoints -------------------------------------------------------------------------------------------------------


def not_a_checkpoint(folder: Path) -> None:
    (folder / "readme.md").write_text("hello")


def pickle_only(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def truncated(folder: Path) -> None:
    write_checkpoint(folder, {"a.weight": ("BF16", random_tensor((8, 8)))})
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def shard_missing(folder: Path) -> None:
    write_checkpoint(folder, {n: ("BF16", random_tensor((8, 8))) for n in ("a.weight", "b.weight")}, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()


def unknown_dtype(folder: Path) -> None:
    write_shard(folder / "model.safetensors", {"a.weight": ("BF16", (2,), b"abcd")})
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b"BF16", b"BF61"))


def config_malformed(folder: Path) -> None:
    write_checkpoint(folder, {"a.weight": ("BF16", random_tensor((8, 8)))})
    (folder / "config.json").write_text('{"a": 1, "a": 2}')


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"this is no JSON!")


CHECKPOINTS = [
    (not_a_checkpoint, "not-a-checkpoint"),
    (pickle_only, "pickle-only"),
    (truncated, "shard-truncated"),
    (shard_missing, "shard-missing"),
    (unknown_dtype, "unknown-dtype"),
    (config_malformed, "config-malformed"),
    (garbage, "header-malformed"),
]


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["people", "json"])
@pytest.mark.parametrize(("make", "code"), CHECKPOINTS, ids=[code for _, code in CHECKPOINTS])
def test_a_checkpoint_that_cannot_be_read_is_status_9(planner, tmp_path, make, code, flags):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    failed(planner("profile", folder, *flags), 9, code, "BF61" if code == "unknown-dtype" else str(folder))


@pytest.mark.parametrize("command", ["log", "verify", "revert", "recover"])
def test_a_name_that_is_no_checkpoint_is_status_9(planner, tmp_path, command):
    failed(planner(command, tmp_path / "no" / "where", "--json"), 9, "not-a-checkpoint", "does not exist")


# -- plans -------------------------------------------------------------------------------------------------------------

PLANS = [
    ("not JSON", "{", 3, "plan-invalid", "not sound JSON"),
    ("a list", "[]", 3, "plan-invalid", "not a JSON object"),
    ("no schema", "{}", 3, "plan-invalid", "schema"),
    ("newer", '{"schema": "planner/plan@2"}', 3, "plan-too-new", "newer planner"),
    ("empty", '{"schema": "planner/plan@1"}', 3, "plan-invalid", "goal: Field required"),
]


@pytest.mark.parametrize("verb", ["check", "apply"])
@pytest.mark.parametrize(("text", "status", "code", "words"), [p[1:] for p in PLANS], ids=[p[0] for p in PLANS])
def test_a_file_that_is_no_plan_is_refused(planner, tiny_model, tmp_path, verb, text, status, code, words):
    plan = tmp_path / "plan.json"
    plan.write_text(text)
    more = ["--in-place"] if verb == "apply" else []
    failed(planner(verb, plan, "--model", tiny_model, *more, "--json"), status, code, words)


@pytest.mark.parametrize(
    ("field", "value"), [("confidence", 1.5), ("confidence", -0.1), ("confidence", "0.5"), ("reasoning", "")]
)
def test_a_value_out_of_range_is_refused_and_named(planner, edited, tiny_model, field, value):
    plan = edited("modifications", 0, field, value)
    failed(planner("check", plan, "--model", tiny_model, "--json"), 3, "plan-invalid", f"modifications[0].{field}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_factor_that_is_no_number_is_refused(planner, edited, tiny_model, number):
    plan = edited("modifications", 1, "operation", "factor", 12345)
    plan.write_text(plan.read_text().replace("12345", number))
    failed(planner("check", plan, "--model", tiny_model), 3, "plan-invalid", "not sound JSON")


def test_every_problem_of_a_plan_is_reported_at_once(planner, edited, tiny_model):
    document = json.loads(edited("modifications", 0, "confidence", 7).read_text())
    document["modifications"][1]["operation"] = {"kind": "explode"}
    document["extra"] = 1
    plan = edited("goal", "x")
    plan.write_text(json.dumps(document))
    result = planner("check", plan, "--model", tiny_model, "--json")
    failed(result, 3, "plan-invalid", "m01", "m02", "extra")
    assert len(result.json["error"]["problems"]) == 3


def test_a_plan_for_another_checkpoint_is_status_4_wherever_it_is_used(planner, edited, tiny_model, tmp_path):
    stale = edited("checkpoint", "fingerprint", "blake3:" + "0" * 64)
    checked = planner("check", stale, "--model", tiny_model, "--json")
    assert checked.status == 4
    assert [problem["code"] for problem in checked.json["problems"]] == ["stale-plan"]
    failed(planner("review", stale, "--model", tiny_model, "--approve", "all"), 4, "stale-plan")
    out = tmp_path / "out"
    failed(planner("apply", stale, "--model", tiny_model, "--out", out, "--yes", "--json"), 4, "stale-plan")
    assert not out.exists()


def test_a_target_that_matches_nothing_is_refused_with_the_nearest_names(planner, edited, tiny_model, tmp_path):
    plan = edited("modifications", 0, "target", {"tensors": ["model.layers.0.self_attn.q_prj.weight"]})
    checked = planner("check", plan, "--model", tiny_model)
    assert checked.status == 3
    assert "model.layers.0.self_attn.q_proj.weight" in checked.out
    assert "refused: 1 problem" in checked.out
    result = planner("apply", plan, "--model", tiny_model, "--out", tmp_path / "out", "--yes")
    failed(result, 3, "plan-refused", "no tensor matches")


def test_a_modification_that_changes_no_bit_is_refused_unless_it_is_allowed(planner, tiny_model, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    void = {"target": {"tensors": ["model.norm.weight"]}, "operation": {"kind": "scale", "factor": 1.0001}}
    plan.write_bytes(write_plan(a_plan(tiny_model, void)))
    checked = planner("check", plan, "--model", tiny_model, "--json")
    assert checked.status == 3
    assert checked.json["problems"][0]["code"] == "void-modification"
    assert checked.json["plan_effect"] == "void"
    assert planner("check", plan, "--model", tiny_model, "--allow-void").status == 0
    failed(planner("apply", plan, "--model", tiny_model, "--out", out, "--yes", "--json"), 3, "void-modification")
    assert not out.exists()
    assert planner("apply", plan, "--model", tiny_model, "--out", out, "--yes", "--allow-void").status == 0


@pytest.mark.parametrize("decisions", [[], ["--approve", "m01"], ["--reject", "all"]], ids=["none", "some", "rejected"])
def test_what_nobody_approved_is_not_applied(planner, proposed, tiny_model, tmp_path, decisions):
    if decisions:
        assert planner("review", proposed, "--model", tiny_model, *decisions).status == 0
    result = planner("apply", proposed, "--model", tiny_model, "--out", tmp_path / "out", "--json")
    failed(result, 3, "plan-not-approved")
    assert not (tmp_path / "out").exists()


def test_what_was_edited_after_its_approval_is_not_applied(planner, approved, tiny_model, tmp_path):
    document = json.loads(approved.read_text())
    document["modifications"][1]["operation"]["factor"] = 1.5
    approved.write_text(json.dumps(document))
    result = planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "out")
    failed(result, 3, "plan-not-approved", "edited after the review: m02")


def test_a_policy_holds_for_check_and_apply(planner, approved, tiny_model, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('operations = ["clamp"]\nprotected = ["*.layers.5.*"]\n')
    checked = planner("check", approved, "--model", tiny_model, "--policy", policy, "--json")
    assert checked.status == 3
    assert {problem["modification"] for problem in checked.json["problems"]} == {"m01", "m02", "m03"}
    unseen = planner("apply", approved, "--model", tiny_model, "--in-place", "--policy", policy)
    failed(unseen, 3, "plan-not-approved", "which differ in operations, protected")
    assert planner("review", approved, "--model", tiny_model, "--policy", policy, "--approve", "all").status == 0
    result = planner("apply", approved, "--model", tiny_model, "--in-place")
    failed(result, 3, "plan-refused", "the policy protects")
    policy.write_text("proteced = []\n")
    failed(planner("check", approved, "--model", tiny_model, "--policy", policy), 2, "policy-invalid", "proteced")


# -- usage -------------------------------------------------------------------------------------------------------------

USAGE = [
    (["explode"], "usage", "explode"),
    (["profile"], "usage", "MODEL"),
    (["profile", "MODEL", "--bogus"], "usage", "--bogus"),
    (["propose", "MODEL"], "usage", "--goal"),
    (["propose", "MODEL", "--goal", "g", "--analyst", "oracle"], "usage", "--analyst"),
    (["propose", "MODEL", "--goal", "g", "--analyst", "llm"], "usage", "no language model"),
    (["propose", "MODEL", "--goal", "g", "--analyst", "rules", "--llm", "x"], "usage", "analyst is `rules`"),
    (["propose", "MODEL", "--goal", "g", "--repairs", "11"], "usage", "--repairs"),
    (["propose", "MODEL", "--goal", "g", "--temperature", "nan"], "usage", "--temperature"),
    (["propose", "MODEL", "--goal", "g" * 2049], "usage", "--goal"),
    (["propose", "MODEL", "--goal", "\udcff"], "usage", "--goal"),
    (["propose", "MODEL", "--goal", "g", "--llm", "x", "--base-url", "nonsense"], "usage", "--base-url"),
    (["check", "no-such.json", "--model", "MODEL"], "file-unreadable", "no-such.json"),
    (["check", "binary", "--model", "MODEL"], "file-unreadable", "not UTF-8"),
    (["check", "MODEL"], "usage", "--model"),
    (["apply", "PLAN", "--model", "MODEL"], "usage", "--in-place"),
    (["apply", "PLAN", "--model", "MODEL", "--in-place", "--out", "x"], "usage", "not both"),
    (["review", "PLAN", "--model", "MODEL"], "answer-needed", "--approve"),
    (["review", "PLAN", "--model", "MODEL", "m01"], "usage", "m01"),
    (["review", "PLAN", "--model", "MODEL", "--approve", "m09"], "usage", "m09"),
    (["review", "PLAN", "--model", "MODEL", "--approve", "all", "--reject", "all"], "usage", "at once"),
    (["review", "PLAN", "--model", "MODEL", "--approve", "all", "--why", "x" * 2049], "usage", "--why"),
    (["review", "PLAN", "--model", "MODEL", "--approve", "all", "--reviewer", "x" * 201], "usage", "--reviewer"),
    (["revert", "MODEL"], "nothing-to-revert", "no patch"),
    (["revert", "MODEL", "--to", "-1"], "usage", "--to"),
    (["evaluate", "MODEL", "--baseline", "MODEL", "--suite", "no.toml"], "file-unreadable", "no.toml"),
    (["evaluate", "MODEL", "--baseline", "MODEL", "--suite", "bad.toml"], "suite-invalid", "colour"),
    (["run", "no.toml"], "file-unreadable", "no.toml"),
    (["schemas", "--check", "--out", "nowhere"], "usage", "plan.schema.json"),
]


USAGE += [([*given, "--json"], *rest) for given, *rest in USAGE if given[0] not in ("review", "schemas")]


@pytest.mark.parametrize(("arguments", "code", "word"), USAGE, ids=[" ".join(u[0])[-50:] for u in USAGE])
def test_wrong_usage_is_status_2_and_names_the_culprit(
    planner, tiny_model, proposed, tmp_path, monkeypatch, arguments, code, word
):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "bad.toml").write_text('colour = "red"\n')
    monkeypatch.chdir(tmp_path)
    given = [{"MODEL": tiny_model, "PLAN": proposed}.get(argument, argument) for argument in arguments]
    if arguments[0] == "propose":
        given += ["--out", "new.json"]
    failed(planner(*given), 2, code, word)
    assert not (tmp_path / "new.json").exists()


def test_an_output_that_exists_is_never_overwritten(planner, approved, tiny_model, tmp_path, everything):
    before = everything(tmp_path)
    result = planner("apply", approved, "--model", tiny_model, "--out", tiny_model, "--json")
    failed(result, 2, "output-exists")
    failed(planner("propose", tiny_model, "--goal", "g", "--out", approved), 2, "output-exists")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("extra", ["torch", "transformers"])
def test_a_missing_extra_says_how_to_install_it(planner, tiny_model, suite, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    result = planner("evaluate", tiny_model, "--baseline", tiny_model, "--suite", suite(0), "--json")
    failed(result, 2, "extra-missing", extra, "pip install 'model-patch-planner[torch]'")


def test_a_missing_litellm_says_how_to_install_it(planner, tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv("PLANNER_OFFLINE")
    monkeypatch.setitem(sys.modules, "litellm", None)
    result = planner("propose", tiny_model, "--goal", "g", "--llm", "mistral/m", "--out", tmp_path / "new.json")
    failed(result, 2, "extra-missing", "model-patch-planner[litellm]")


# -- gates, endpoints, storage, locks, bugs ----------------------------------------------------------------------------


def test_a_refused_gate_is_status_5_and_says_why(planner, approved, tiny_model, tmp_path, suite):
    patched = tmp_path / "patched"
    assert planner("apply", approved, "--model", tiny_model, "--out", patched).status == 0
    result = planner("evaluate", patched, "--baseline", tiny_model, "--suite", suite(0))
    assert result.status == 5
    assert "gate max_drift: REFUSED" in result.out
    assert "the mean KL divergence is" in result.out


def test_no_key_is_status_6(planner, tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv("PLANNER_OFFLINE")
    result = planner("propose", tiny_model, "--goal", "g", "--llm", "gpt", "--out", tmp_path / "new.json", "--json")
    failed(result, 6, "key-missing", "OPENAI_API_KEY")


def test_offline_is_status_6(planner, tiny_model, tmp_path):
    result = planner("propose", tiny_model, "--goal", "g", "--llm", "openai/gpt", "--out", tmp_path / "new.json")
    failed(result, 6, "network-forbidden", "PLANNER_OFFLINE")


def test_an_unreachable_endpoint_is_status_6(planner, tiny_model, tmp_path):
    with ChatServer([]) as server:
        gone = server.base_url
    options = ["--llm", "m", "--base-url", gone, "--timeout", "3", "--out", tmp_path / "new.json", "--json"]
    failed(planner("propose", tiny_model, "--goal", "g", *options), 6, "endpoint-unreachable", gone)
    assert not (tmp_path / "new.json").exists()


def test_a_refusing_endpoint_is_status_6_and_the_transcript_holds_the_question(planner, tiny_model, tmp_path):
    with ChatServer([Status(401, {"error": {"message": "bad key"}})]) as server:
        options = ["--llm", "m", "--base-url", server.base_url, "--out", tmp_path / "new.json"]
        failed(planner("propose", tiny_model, "--goal", "why me", *options), 6, "endpoint-refused", "401")
    assert "why me" in (tmp_path / "new.transcript.json").read_text()
    assert not (tmp_path / "new.json").exists()


def test_a_full_disk_is_status_7_before_the_first_byte(
    planner, approved, tiny_model, tmp_path, monkeypatch, everything
):
    monkeypatch.setattr("planner.fsio.room.free_bytes", lambda _: 1)
    before = everything(tmp_path)
    result = planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "out", "--json")
    failed(result, 7, "no-space", "bytes are needed")
    failed(planner("apply", approved, "--model", tiny_model, "--in-place"), 7, "no-space")
    assert everything(tmp_path) == before


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, "read-only"), (errno.ENOSPC, "no-space"), (5, "storage")])
def test_a_disk_that_says_no_is_status_7(
    planner, approved, tiny_model, tmp_path, monkeypatch, everything, number, code
):
    def refuse(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    before = everything(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        result = planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "out", "--json")
    failed(result, 7, code, str(tmp_path))
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["propose", "MODEL", "--goal", "g", "--out", "no/such/plan.json"],
        ["apply", "PLAN", "--model", "MODEL", "--out", "no/such/folder"],
        ["evaluate", "MODEL", "--baseline", "MODEL", "--suite", "none.toml", "--out", "no/such/evaluation.json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_does_not_exist_is_found_out_before_any_work(
    planner, approved, tiny_model, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("planner.analysts.proposing.RulesAnalyst.propose", None)
    given = [{"MODEL": tiny_model, "PLAN": approved}.get(argument, argument) for argument in arguments]
    failed(planner(*given), 7, "storage", "no/such does not exist")


def test_a_locked_checkpoint_is_status_8_and_names_the_holder(planner, approved, tiny_model):
    with fsio.lock(tiny_model.parent / ".tiny-model.planner-lock"):
        result = planner("apply", approved, "--model", tiny_model, "--in-place", "--json")
        failed(result, 8, "locked", str(os.getpid()))
        failed(planner("recover", tiny_model), 8, "locked")
    assert planner("apply", approved, "--model", tiny_model, "--in-place").status == 0


def test_a_bug_of_ours_is_status_1_without_a_traceback(planner, tiny_model, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the sky is green")

    monkeypatch.setattr("planner.profile.profile_of", broken)
    result = planner("profile", tiny_model, "--json")
    failed(result, 1, "internal", "RuntimeError: the sky is green", "a bug in the planner")
    monkeypatch.setenv("PLANNER_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        planner("profile", tiny_model)


def test_an_error_of_the_operating_system_that_nobody_foresaw_is_status_7(planner, tiny_model, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error", "/dev/somewhere")

    monkeypatch.setattr("planner.profile.profile_of", broken)
    failed(planner("profile", tiny_model, "--json"), 7, "storage", "/dev/somewhere: Input/output error")


@pytest.mark.parametrize(("flags", "status"), [([], 7), (["--json"], 7)])
def test_a_stdout_that_is_full_is_status_7_without_a_traceback(tiny_model, flags, status):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "planner", "profile", str(tiny_model), *flags]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == status
    assert found.stderr.startswith("error[storage]: the output could not be written: No space left on device; ")
    assert len(found.stderr.splitlines()) == 2


def test_a_reader_that_goes_away_is_no_error(tiny_model):
    command = [sys.executable, "-m", "planner", "profile", str(tiny_model), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
