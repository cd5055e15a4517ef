import importlib.util
import json
import subprocess
import sys

import pytest
from chat_server import Answer, ChatServer

from planner.llm import Backoff, Message, OpenAICompatibleClient, Price, Request, Usage, cost_of, price_of
from planner.llm.prices import _listed

NEEDS_LITELLM = pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="litellm is not installed")
ASK = Request(messages=(Message(role="user", content="hi"),))
USAGE = Usage(input_tokens=1000, output_tokens=100, cost_usd=None)


@pytest.fixture(autouse=True)
def fresh():
    _listed.cache_clear()
    yield
    _listed.cache_clear()


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """`listed(content)` makes that the price list of an installed litellm."""
    folder = tmp_path / "litellm"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('litellm was imported')")
    monkeypatch.delitem(sys.modules, "litellm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def write(content):
        _listed.cache_clear()
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "model_prices_and_context_window_backup.json").write_text(text)

    return write


def entry(read=1e-6, written=2e-6, provider="openai"):
    return {"input_cost_per_token": read, "output_cost_per_token": written, "litellm_provider": provider}


@NEEDS_LITELLM
def test_the_list_of_the_installed_litellm_is_read_without_importing_it():
    code = (
        "import sys\nfrom planner.llm import price_of\n"
        "price = price_of('gpt-4o-mini')\n"
        "assert 1e-9 < price.input_usd < price.output_usd < 1e-3, price\n"
        "assert price_of('openai/gpt-4o-mini') == price\n"
        "assert price_of('nobody-knows') is None\n"
        "assert 'litellm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_with_their_provider(listed):
    listed({"a": entry(), "b": entry(3e-6, 4e-6, "anthropic"), "groq/c": entry(5e-6, 6e-6, "groq")})
    assert price_of("a") == price_of("openai/a") == Price(input_usd=1e-6, output_usd=2e-6)
    assert price_of("anthropic/b") == Price(input_usd=3e-6, output_usd=4e-6)
    assert price_of("groq/c") == Price(input_usd=5e-6, output_usd=6e-6)
    assert [price_of(name) for name in ("groq/a", "c", "", "/", "openai/")] == [None] * 5


@pytest.mark.parametrize(
    "wrong",
    [{}, None, "x", entry(None), entry("1e-6"), entry(True), entry(-1e-6), {"input_cost_per_token": 1e-6}],
    ids=str,
)
def test_an_entry_without_prices_is_no_price(wrong, listed):
    listed({"a": wrong})
    assert price_of("a") is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1e999}'])
def test_a_list_that_cannot_be_read_knows_nothing(content, listed):
    listed(content)
    assert price_of("a") is None


def test_without_litellm_nothing_is_known(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert price_of("gpt-4o-mini") is None


def test_costs():
    price = Price(input_usd=1e-6, output_usd=2e-6)
    assert cost_of(USAGE, price) == pytest.approx(0.0012)
    assert cost_of(USAGE, None) is None
    assert cost_of(Usage(input_tokens=0, output_tokens=0, cost_usd=None), price) is None


def test_only_openai_itself_has_the_price_of_the_list(listed, monkeypatch):
    listed({"a": entry()})
    monkeypatch.setenv("PLANNER_OFFLINE", "0")
    environment = {"OPENAI_API_KEY": "k" * 20}
    with ChatServer([Answer("text"), Answer("text")]) as server:
        monkeypatch.setenv("HTTP_PROXY", server.base_url.removesuffix("/v1"))
        costs = []
        for base_url in ("http://api.openai.com/v1", server.base_url):
            made = OpenAICompatibleClient(
                "a", base_url=base_url, timeout_s=9, environment=environment, backoff=Backoff(attempts=1)
            )
            costs.append(made.complete(ASK).usage.cost_usd)
            made.close()
    assert costs == [pytest.approx(11e-6 + 14e-6), None]
