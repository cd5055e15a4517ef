import subprocess
import sys

import pytest
from pydantic import ValidationError

import planner.llm
from planner.errors import AnswerUnusable, ExtraMissing, KeyMissing, NetworkForbidden, UsageError
from planner.llm import (
    Client,
    LiteLLMClient,
    Message,
    OpenAICompatibleClient,
    Request,
    ScriptedClient,
    client_for,
)
from planner.llm.endpoint import is_loopback

ASK = Request(messages=(Message(role="user", content="hi"),))


def test_the_package_imports_no_http_library():
    code = (
        "import sys, planner.llm\n"
        "heavy = {'openai', 'litellm', 'httpx', 'httpcore', 'tenacity'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_names_exist_and_are_sorted():
    assert planner.llm.__all__ == sorted(planner.llm.__all__)
    assert all(hasattr(planner.llm, name) for name in planner.llm.__all__)


def test_requests_are_bounded():
    assert (ASK.max_output_tokens, ASK.temperature) == (8192, None)
    for wrong in ({"messages": ()}, {"max_output_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(ValidationError):
            Request(**{"messages": ASK.messages, **wrong})


def test_every_field_is_described():
    for record in (Message, Request, planner.llm.Usage, planner.llm.Reply):
        assert all(field.description for field in record.model_fields.values()), record


def test_the_scripted_client_answers_raises_and_records():
    failure = AnswerUnusable("cut", hint="more")
    client: Client = ScriptedClient(["one", failure], name="double")
    assert client.name == "double"
    reply = client.complete(ASK)
    assert (reply.text, reply.model, reply.finish_reason, reply.attempts) == ("one", "double", "stop", 1)
    with pytest.raises(AnswerUnusable) as caught:
        client.complete(ASK)
    assert caught.value is failure
    with pytest.raises(AssertionError, match="request 3 to a script of 2"):
        client.complete(ASK)
    assert client.requests == [ASK] * 3


LOCAL = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("model", "base_url", "name"),
    [
        ("gpt-x", None, "gpt-x"),
        ("openai/gpt-x", None, "gpt-x"),
        ("openai/org/gpt-x", None, "org/gpt-x"),
        ("Qwen/Qwen3-8B", LOCAL, "Qwen/Qwen3-8B"),
        ("openai/gpt-oss-20b", LOCAL, "openai/gpt-oss-20b"),
        ("/models/a.gguf", LOCAL, "/models/a.gguf"),
    ],
)
def test_which_names_go_to_the_openai_sdk(model, base_url, name):
    client = client_for(model, base_url=base_url, timeout_s=1, environment={"OPENAI_API_KEY": "k" * 20})
    assert isinstance(client, OpenAICompatibleClient)
    assert client.name == name


def test_other_providers_go_to_litellm(monkeypatch):
    made = []
    monkeypatch.setattr("planner.llm.LiteLLMClient", lambda model, **given: made.append((model, given)))
    client_for("anthropic/some-model", base_url=None, timeout_s=7, environment={})
    assert made == [("anthropic/some-model", {"timeout_s": 7, "environment": {}})]


@pytest.mark.parametrize("model", ["", "  ", "openai/", "anthropic/"])
def test_no_model_is_wrong_usage(model):
    with pytest.raises(UsageError, match="no model"):
        client_for(model, base_url=None, timeout_s=1, environment={})


def test_litellm_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(ExtraMissing) as caught:
        client_for("anthropic/x", base_url=None, timeout_s=1, environment={})
    assert "pip install 'model-patch-planner[litellm]'" in caught.value.hint
    assert caught.value.__context__ is None


@pytest.mark.parametrize("base_url", [None, "https://llm.example.com/v1"])
def test_no_key(base_url):
    with pytest.raises(KeyMissing) as caught:
        client_for("gpt-x", base_url=base_url, timeout_s=1, environment={"OPENAI_API_KEY": " "})
    assert "OPENAI_API_KEY" in caught.value.hint
    assert ("PLANNER_API_KEY" in caught.value.hint) == bool(base_url)


def test_the_planner_key_is_only_for_an_address_that_was_given():
    with pytest.raises(KeyMissing):
        client_for("gpt-x", base_url=None, timeout_s=1, environment={"PLANNER_API_KEY": "k" * 20})


@pytest.mark.parametrize("key", ["has space", "new\nline", "ümlaut-key", "“quoted”"])
def test_a_key_that_fits_no_header_is_not_shown(key):
    with pytest.raises(KeyMissing, match="OPENAI_API_KEY holds") as caught:
        client_for("gpt-x", base_url=None, timeout_s=1, environment={"OPENAI_API_KEY": key})
    assert key not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("value", ["1", "true", "yes"])
@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("gpt-x", None),
        ("anthropic/x", None),
        ("m", "https://llm.example.com/v1"),
        ("m", "http://127.0.0.1.example.com/v1"),
        ("m", "http://10.0.0.1/v1"),
        ("m", "http://0.0.0.0/v1"),
    ],
)
def test_offline_forbids_every_other_machine(model, base_url, value):
    environment = {"PLANNER_OFFLINE": value, "OPENAI_API_KEY": "k" * 20}
    with pytest.raises(NetworkForbidden, match="PLANNER_OFFLINE"):
        client_for(model, base_url=base_url, timeout_s=1, environment=environment)


def test_offline_0_forbids_nothing_and_offline_1_not_this_machine():
    key = {"OPENAI_API_KEY": "k" * 20}
    client_for("gpt-x", base_url=None, timeout_s=1, environment={"PLANNER_OFFLINE": "0", **key})
    client_for("gpt-x", base_url=LOCAL, timeout_s=1, environment={"PLANNER_OFFLINE": "1"})
    client_for("gpt-x", base_url=None, timeout_s=1, environment={"PLANNER_OFFLINE": "1", "OPENAI_BASE_URL": LOCAL})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost.example.com", False),
        ("2130706433", False),
        ("::2", False),
    ],
)
def test_is_loopback(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "base_url",
    [
        "localhost:8000/v1",
        "ftp://localhost/v1",
        "http://",
        "http://[::1",
        "http://user:passw0rd@localhost/v1",
        "http://localhost/v1?key=passw0rd",
        "http://localhost/v1#passw0rd",
        "not an address",
    ],
)
def test_no_address(base_url):
    with pytest.raises(UsageError, match="--base-url") as caught:
        client_for("m", base_url=base_url, timeout_s=1, environment={})
    assert "passw0rd" not in str(caught.value) + caught.value.hint
    assert caught.value.__context__ is None


def test_litellm_client_is_exported():
    assert LiteLLMClient.__module__ == "planner.llm.litellm_provider"
