import pytest

from planner.profile import store


@pytest.fixture(autouse=True)
def no_profile_is_kept(monkeypatch):
    """Whether a profile goes into the cache depends on the age of the files: here no write may depend on the clock."""
    monkeypatch.setattr(store, "SETTLED_NS", 10**18)
