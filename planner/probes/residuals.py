"""The residual stream of a loaded model: what each decoder block leaves, and the logits that it stands for.

The lens of a stream is what the model itself would make of it after its last block. So it is computed by the model's
own code, with the blocks taken out: final norm, output projection, head, logit scale and cap are those of the family,
and the lens of the last layer is the model's own output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from planner.architecture import ModelMap, role_of
from planner.errors import CheckpointError
from planner.inference import context_of, logits_of, parameters_by_tensor

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["ResidualStream", "decoder_blocks"]

# Logits of the lens that are held at a time, in elements: 32 MiB.
_LENS_ELEMENTS = 2**23
# Between the model's logits and the lens of its last block there is only the rounding of differently cut products.
_SAME_LOGITS = 1e-3
_CHECKED_POSITIONS = 16


def decoder_blocks(model: Any, known: ModelMap, shapes: Mapping[str, tuple[int, ...]]) -> list[Module]:
    """The module of each decoder block, in order: the one that holds the layer's tensors.

    `shapes` are those of the stored tensors. Their layers come from the map, and from the names where it says nothing.

    Raises `CheckpointError` where the layers' tensors do not lie in one module each.
    """
    paths = {id(parameter): name for name, parameter in model.named_parameters()}
    inside: dict[int, list[list[str]]] = {}
    for name, parameter in parameters_by_tensor(model, shapes).items():
        mapped = known.parameters.get(name)
        layer = mapped.layer if mapped else role_of(name).layer
        if layer is not None:
            inside.setdefault(layer, []).append(paths[id(parameter)].split("."))
    if not inside or sorted(inside) != list(range(len(inside))):
        raise _no_lens(f"its tensors name the layers {sorted(inside)}" if inside else "no tensor is in a layer")
    found: list[Module] = []
    for layer in range(len(inside)):
        common = [
            words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*inside[layer], strict=False))
        ]
        while common and common[-1] != str(layer):
            common.pop()
        if not common:
            raise _no_lens(f"the tensors of layer {layer} do not lie in one numbered module")
        found.append(model.get_submodule(".".join(common)))
    return found


def _no_lens(why: str) -> CheckpointError:
    return CheckpointError(
        f"no lens for this architecture: {why}",
        hint="the lens needs decoder blocks that run one after another, once each, with nothing around them",
    )


class ResidualStream:
    """One model, with its blocks known: reads the stream while the model runs, and the logits of any stream."""

    def __init__(self, model: Any, blocks: Sequence[Module]) -> None:
        self.model = model
        self.blocks = tuple(blocks)
        self.rows = len(self.blocks) + 1
        """Places at which the stream is read: before the first block, and after each block."""
        self._tuples: list[int] = []
        self._seen: list[tuple[int, Any]] | None = None
        self._checked = False

    def runs(self, inputs: Tensor, mask: Tensor, width: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Run documents, [documents, positions]; at most `width` positions of a document at once.

        Yields, for consecutive positions, the streams (`rows` tensors [documents, positions, channels]) and the model's
        own logits, [documents, positions, vocabulary]. Raises `CheckpointError` where the blocks do not run one after
        another, or where the lens of the last one is not the model's output.
        """
        handles = [self.blocks[0].register_forward_pre_hook(self._entered, with_kwargs=True)]
        for place, block in enumerate(self.blocks, start=1):
            handles.append(block.register_forward_hook(self._after(place)))
        try:
            run = logits_of(self.model, inputs, mask, width)
            while True:
                self._seen = []
                try:
                    logits = next(run, None)
                finally:
                    # The lens runs through the same modules; what they do then is not the stream.
                    seen, self._seen = self._seen, None
                if logits is None:
                    return
                streams = self._in_order(seen)
                if not self._checked:
                    self._require_own_logits(streams[-1], logits)
                    self._checked = True
                yield streams, logits
        finally:
            for handle in handles:
                handle.remove()

    def lens(self, stream: Tensor) -> Tensor:
        """Logits [positions, vocabulary] of a stream [positions, channels], as after the last block.

        For at most `most_positions` positions.
        """
        import torch

        ids = torch.zeros(1, len(stream), dtype=torch.int64)
        with self._without_blocks(stream.unsqueeze(0)):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits[0]

    def most_positions(self, vocabulary: int) -> int:
        """How many positions the lens takes at once: 32 MiB of logits, and no more than the model's context."""
        most = max(1, _LENS_ELEMENTS // max(vocabulary, 1))
        return min(most, context_of(self.model) or most)

    @contextmanager
    def _without_blocks(self, stream: Tensor) -> Iterator[None]:
        """The model without its blocks, `stream` being what the last one leaves."""
        try:
            for block, tuples in zip(self.blocks, self._tuples, strict=True):
                # An attribute of the object hides the method of its class, and is gone without a trace afterwards.
                block.forward = _leaving((stream, *[None] * (tuples - 1)) if tuples else stream)
            yield
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)

    def _entered(self, _: Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._seen is not None:
            self._seen.append((0, arguments[0] if arguments else keywords.get("hidden_states")))

    def _after(self, place: int) -> Any:
        def hook(_: Module, __: tuple[Any, ...], output: Any) -> None:
            if self._seen is not None:
                self._seen.append((place, output))

        return hook

    def _in_order(self, seen: list[tuple[int, Any]]) -> list[Tensor]:
        import torch

        if [place for place, _ in seen] != list(range(self.rows)):
            raise _no_lens("its blocks do not run one after another, once each")
        # Older code returns the stream with attention weights or a cache behind it.
        self._tuples = [len(output) if isinstance(output, tuple) else 0 for _, output in seen[1:]]
        streams = [output[0] if isinstance(output, tuple) else output for _, output in seen]
        if not all(isinstance(stream, torch.Tensor) and stream.shape == streams[-1].shape for stream in streams):
            raise _no_lens("what its blocks pass on is not one stream of one width")
        if streams[-1].ndim != 3:
            raise _no_lens(f"what its blocks pass on has {streams[-1].ndim} dimensions, not 3")
        return streams

    def _require_own_logits(self, last: Tensor, logits: Tensor) -> None:
        # Backwards: a step that mixes positions, such as a block that was not taken out, does not go unseen.
        own = logits[0, :_CHECKED_POSITIONS].flip(0)
        lens = self.lens(last[0, :_CHECKED_POSITIONS].flip(0))
        if not bool(own.isfinite().all()):
            return  # a broken model says so by itself
        scale = max(1.0, float(own.abs().max()))
        if lens.shape != own.shape or not float((lens - own).abs().max()) <= _SAME_LOGITS * scale:
            raise _no_lens("what follows its last block does not depend on the residual stream alone")


def _leaving(output: Any) -> Any:
    def forward(*_: Any, **__: Any) -> Any:
        return output

    return forward
