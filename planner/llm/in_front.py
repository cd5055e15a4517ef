"""What clients have in common that stand in front of another one."""

from __future__ import annotations

from planner.llm.base import Client

__all__ = ["InFront"]


class InFront:
    """Has the name of the client behind, knows what that knows of the endpoint, and closes it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def name(self) -> str:
        """The model's name."""
        return self._client.name

    @property
    def native_tools(self) -> bool | None:
        """What is known of the endpoint's tool calls; None as long as nobody knows."""
        known: bool | None = getattr(self._client, "native_tools", None)
        return known

    def close(self) -> None:
        """Close the client behind."""
        self._client.close()
