import importlib.util
import os

import pytest

from planner.llm import Backoff, LiteLLMClient, OpenAICompatibleClient

CANARY = "sk-canary/Zq+7&x=YW5vdGhlcg"
FAST = Backoff(base_s=0.001, cap_s=0.002)
HAS_LITELLM = importlib.util.find_spec("litellm") is not None


@pytest.fixture
def canary():
    """A key with every character that a URL, JSON or HTML spells differently."""
    return CANARY


def openai_client(base_url, timeout_s):
    return OpenAICompatibleClient(
        "gpt-4o-mini", base_url=base_url, timeout_s=timeout_s, environment=os.environ, backoff=FAST
    )


def litellm_client(base_url, timeout_s):
    return LiteLLMClient(
        "openai/gpt-4o-mini", base_url=base_url, timeout_s=timeout_s, environment=os.environ, backoff=FAST
    )


@pytest.fixture(
    params=[
        pytest.param(openai_client, id="openai"),
        pytest.param(
            litellm_client,
            id="litellm",
            marks=[
                pytest.mark.skipif(not HAS_LITELLM, reason="litellm is not installed"),
                # litellm ignores this warning of its own types itself, but pytest resets the filters for each test.
                pytest.mark.filterwarnings("ignore:.*is using the `ReadOnly` qualifier:UserWarning"),
            ],
        ),
    ]
)
def transport(request, monkeypatch):
    """`transport(server)` is a client of each transport, with the canary as its key; closed after the test."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    made = []

    def make(server, *, timeout_s=20.0):
        base_url = server if isinstance(server, str) else server.base_url
        made.append(request.param(base_url, timeout_s))
        return made[-1]

    yield make
    for client in made:
        client.close()
