"""The JSON of profiles, a tensor at a time: that of a large model would take its memory again in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.profile.types import Profile, TensorProfile

__all__ = ["profile_pieces", "tensor_pieces"]


def tensor_pieces(tensors: Sequence[TensorProfile]) -> Iterator[bytes]:
    """A JSON list of tensors."""
    yield b"["
    for place, tensor in enumerate(tensors):
        yield (b"," if place else b"") + tensor.model_dump_json().encode()
    yield b"]"


def profile_pieces(profile: Profile) -> Iterator[bytes]:
    """The document that `profile.model_dump_json()` gives, and a line feed."""
    without = profile.model_copy(update={"tensors": ()}).model_dump_json()
    head, _, tail = without.partition('"tensors":[]')  # inside a string, the quotes would be escaped
    yield f'{head}"tensors":'.encode()
    yield from tensor_pieces(profile.tensors)
    yield f"{tail}\n".encode()
