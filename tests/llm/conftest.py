import pytest

CANARY = "sk-canary/Zq+7&x=YW5vdGhlcg"


@pytest.fixture
def canary():
    """A key with every character that a URL, JSON or HTML spells differently."""
    return CANARY
