"""The logit lens: what the model would predict if it ended after each of its layers (nostalgebraist 2020).

The residual stream after each block is read through the model's own final norm and head. With a second model that
differs from the first in some weights, the same pass tells how much of the difference survives at each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from planner import __version__
from planner.architecture import map_of
from planner.checkpoint import Checkpoint
from planner.errors import CheckpointError, TextInvalid, UsageError
from planner.evaluation.pair import Pair, load_pair, tokenize
from planner.evaluation.report import Side
from planner.inference import batches, context_of, load_model, load_tokenizer, padded, quiet, require_torch
from planner.probes.changed_model import PlannedChange, blocks_that_differ, changed_model
from planner.probes.lens_types import Lens, LensLayer, LensText, LikelyToken, PromptLayer, PromptLens
from planner.probes.recovery import Differences, finite
from planner.probes.residuals import ResidualStream, decoder_blocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Progress", "Question", "lens"]

Progress = Callable[[int, int], None]
"""Called with the positions done and the positions in all; first with 0 done, last with all."""

# What a piece of a batch may fill, in elements, over both models: 512 MiB of streams, 128 MiB of logits each.
_STREAM_ELEMENTS = 2**27
_LOGITS_ELEMENTS = 2**25
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Question:
    """What is to be looked at: a text, prompts, or both."""

    documents: tuple[str, ...] = ()
    """The documents of a text; without any, layers and recovery are measured on the prompts."""
    prompts: tuple[str, ...] = ()
    """Texts whose next token is looked at, layer by layer."""
    top: int = 5
    """How many of the most likely next tokens are kept."""
    text: LensText | None = None
    """Where the documents come from."""


def lens(
    checkpoint: Checkpoint,
    question: Question,
    *,
    change: PlannedChange | None = None,
    candidate: Checkpoint | None = None,
    sides: tuple[Side, Side | None] | None = None,
    progress: Progress | None = None,
) -> Lens:
    """Look at a checkpoint through the lens; with a `change` or a `candidate`, also at what becomes of the difference.

    Models are loaded in float32 on the CPU, offline, without running code from a checkpoint. `sides` says how the
    result names the checkpoints. Memory beyond the models, for two of them: 512 MiB of streams and 256 MiB of logits,
    whatever the vocabulary and the length of a document (a recurrent model's longest document stays whole).

    Raises `ExtraMissing` without torch or transformers. `CheckpointError` when a checkpoint cannot be loaded
    completely, there is no lens for its architecture, its output is not finite, or the two cannot be compared.
    `UsageError` where nothing is asked, a prompt is empty or longer than the context, or the change cannot be made in
    memory. `TextInvalid` when a document has nothing to predict. `PlanRefused` where an edit does not fit.
    """
    require_torch("the lens")
    if not question.documents and not question.prompts:
        raise UsageError("nothing to look at", hint="give --text FILE or --prompt TEXT")
    with quiet():
        pair = _pair(checkpoint, change, candidate)
        compared = pair.candidate is not pair.baseline
        streams = [ResidualStream(pair.baseline, _blocks(pair.baseline, checkpoint))]
        if compared:
            streams.append(ResidualStream(pair.candidate, _blocks(pair.candidate, candidate or checkpoint)))
            if streams[0].rows != streams[1].rows:
                raise CheckpointError(
                    f"{streams[0].rows - 1} layers cannot be compared with {streams[1].rows - 1}",
                    hint="recovery goes layer by layer; compare checkpoints of one architecture",
                )
        asked = _prompt_tokens(pair, question.prompts)
        documents = _text_tokens(pair, question) if question.documents else [[*ids, 0] for ids in asked]
        found = _measured(pair, streams, documents, progress)
        prompts = tuple(_prompt(pair, streams, *one, question.top) for one in zip(question.prompts, asked, strict=True))
        differing = blocks_that_differ(streams[0].blocks, streams[1].blocks) if compared else []
    ours, theirs = sides or (Side(name=str(checkpoint.path)), Side(name=str(candidate.path)) if candidate else None)
    return Lens(
        model=ours,
        candidate=theirs,
        plan=change.plan if change else None,
        text=question.text,
        positions=found.positions,
        layers=found.layers(with_loss=bool(question.documents)),
        prompts=prompts,
        recovery=found.differences.recovery(differing) if found.differences else None,
        versions={"planner": __version__} | {name: version(name) for name in ("numpy", "torch", "transformers")},
    )


def _pair(checkpoint: Checkpoint, change: PlannedChange | None, candidate: Checkpoint | None) -> Pair:
    """The model and the changed one; twice the same one where there is no change."""
    if candidate is not None:
        return load_pair(checkpoint.path, candidate.path)
    model, tokenizer = load_model(checkpoint.path), load_tokenizer(checkpoint.path)
    return Pair(
        baseline=model,
        candidate=model if change is None else changed_model(model, change),
        tokenizers=(tokenizer, tokenizer),
        context=context_of(model),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
    )


def _blocks(model: Any, checkpoint: Checkpoint) -> list[Any]:
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return decoder_blocks(model, map_of(checkpoint.config, shapes), shapes)


def _text_tokens(pair: Pair, question: Question) -> list[list[int]]:
    documents = tokenize(pair, question.documents, question.text.max_tokens if question.text else None)
    short = [number for number, ids in enumerate(documents, start=1) if len(ids) < 2]
    if short:
        raise TextInvalid(
            f"{len(short)} documents have no token to predict, such as document {short[0]}",
            hint="the first token is predicted only after a BOS token; use longer documents or a larger --max-tokens",
        )
    return documents


def _prompt_tokens(pair: Pair, prompts: Sequence[str]) -> list[list[int]]:
    if not prompts:
        return []
    asked = tokenize(replace(pair, context=None), prompts, None)
    for number, ids in enumerate(asked, start=1):
        if not ids:
            raise UsageError(f"prompt {number} has no token", hint="give a prompt that is not empty")
        if pair.context is not None and len(ids) > pair.context:
            raise UsageError(
                f"prompt {number} has {len(ids)} tokens; the model takes {pair.context}", hint="give a shorter prompt"
            )
    return asked


class _Found:
    """Sums over all positions, at each place of the stream."""

    def __init__(self, places: int, documents: int, *, compared: bool) -> None:
        import torch

        self.positions = 0
        self.loss, self.kl, self.same = (torch.zeros(places, dtype=torch.float64) for _ in range(3))
        self.differences = Differences(places, documents) if compared else None

    def layers(self, *, with_loss: bool) -> tuple[LensLayer, ...]:
        n = self.positions
        return tuple(
            LensLayer(
                layer=place - 1 if place else None,
                loss=finite(float(self.loss[place]) / n) if with_loss else None,
                kl=finite(float(self.kl[place]) / n),
                top1_agreement=float(self.same[place]) / n,
            )
            for place in range(len(self.loss))
        )


def _measured(
    pair: Pair, streams: Sequence[ResidualStream], documents: Sequence[Sequence[int]], progress: Progress | None
) -> _Found:
    import torch

    lengths = [len(ids) - 1 for ids in documents]
    found = _Found(streams[0].rows, len(documents), compared=len(streams) > 1)
    # A guess is enough: where the stream is wider than the embedding, the pieces are only somewhat larger.
    channels = int(pair.baseline.get_input_embeddings().weight.shape[1])
    room = _STREAM_ELEMENTS // (len(streams) * streams[0].rows * channels)
    width = max(1, min(_BATCH_TOKENS, _LOGITS_ELEMENTS // pair.vocabulary, room))
    # A recurrent model (transformers says "stateful") does not resume from its cache with more than one token.
    resumable = not any(getattr(side.model, "_is_stateful", False) for side in streams)
    if progress is not None:
        progress(0, sum(lengths))
    with torch.inference_mode():
        for batch in batches(lengths, width):
            inputs, targets, mask = padded([documents[place] for place in batch])
            at_once = width if resumable else inputs.shape[1]
            owners = torch.tensor(batch).unsqueeze(1).expand_as(inputs)
            pieces = zip(*(side.runs(inputs, mask, at_once) for side in streams), strict=True)
            for start, sides in zip(range(0, inputs.shape[1], at_once), pieces, strict=True):
                here = slice(start, start + at_once)
                real = mask[:, here].flatten().nonzero().squeeze(1)
                _add(
                    found,
                    streams,
                    [
                        ([stream.flatten(0, 1)[real] for stream in kept], logits.flatten(0, 1)[real])
                        for kept, logits in sides
                    ],
                    targets[:, here].flatten()[real],
                    owners[:, here].flatten()[real],
                )
                if progress is not None:
                    progress(found.positions, sum(lengths))
    return found


def _add(
    found: _Found,
    streams: Sequence[ResidualStream],
    sides: Sequence[tuple[list[Tensor], Tensor]],
    target: Tensor,
    owner: Tensor,
) -> None:
    """Add some positions: for each model its streams, each [positions, channels], and its logits."""
    import torch

    _require_comparable(sides)
    last = streams[0].rows - 1
    if found.differences:
        found.differences.add_positions(owner)
        for place in range(last + 1):
            found.differences.add(place, sides[0][0][place], sides[1][0][place], owner)
    most = min(side.most_positions(sides[0][1].shape[-1]) for side in streams)
    for rows in torch.split(torch.arange(len(target)), most):
        final = sides[0][1][rows].log_softmax(dim=-1)
        best = final.argmax(dim=-1)
        if not bool(final.isfinite().all()):
            raise CheckpointError(
                "the model's output is not finite", hint="there is nothing to compare its layers with"
            )
        for place in range(last + 1):
            # After the last block, the lens is the output, which is there already.
            ours, *theirs = (
                logits[rows].log_softmax(dim=-1) if place == last else side.lens(kept[place][rows]).log_softmax(dim=-1)
                for side, (kept, logits) in zip(streams, sides, strict=True)
            )
            found.kl[place] += _divergence(final, ours).sum(dtype=torch.float64)
            found.same[place] += (ours.argmax(dim=-1) == best).sum()
            found.loss[place] -= ours.gather(1, target[rows].unsqueeze(1)).sum(dtype=torch.float64)
            if found.differences:
                found.differences.add_kl(place, _divergence(ours, theirs[0]), owner[rows])
        found.positions += len(rows)


def _require_comparable(sides: Sequence[tuple[list[Tensor], Tensor]]) -> None:
    if len(sides) < 2:
        return
    (ours, our_logits), (theirs, their_logits) = sides
    for what, one, other in (("channels", ours[0], theirs[0]), ("tokens", our_logits, their_logits)):
        if one.shape[-1] != other.shape[-1]:
            raise CheckpointError(
                f"{one.shape[-1]} {what} cannot be compared with {other.shape[-1]}",
                hint="recovery goes layer by layer; compare checkpoints of one architecture",
            )


def _divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(ours || theirs) of each row of log-probabilities, in nats, shape [rows].

    A term q - p is added to each, which sums to zero and keeps rounding from making a small divergence negative.
    """
    p, q = ours.exp(), theirs.exp()
    return ((ours - theirs) * p + (q - p)).sum(dim=-1).clamp_(min=0.0)


def _prompt(pair: Pair, streams: Sequence[ResidualStream], prompt: str, ids: list[int], top: int) -> PromptLens:
    """The most likely tokens after a prompt, at each place of the stream of each model."""
    import torch

    found: list[list[tuple[LikelyToken, ...]]] = []
    with torch.inference_mode():
        inputs, _, mask = padded([[*ids, 0]])
        for side in streams:
            width = inputs.shape[1] if getattr(side.model, "_is_stateful", False) else _BATCH_TOKENS
            kept = [stream[0, -1:] for stream in [streams for streams, _ in side.runs(inputs, mask, width)][-1]]
            found.append([_likely(pair.tokenizers[0], side.lens(stream)[0], top) for stream in kept])
    changed = found[1] if len(found) > 1 else [()] * len(found[0])
    return PromptLens(
        prompt=prompt,
        tokens=len(ids),
        layers=tuple(
            PromptLayer(layer=place - 1 if place else None, top=one, top_changed=other)
            for place, (one, other) in enumerate(zip(found[0], changed, strict=True))
        ),
    )


def _likely(tokenizer: Any, logits: Tensor, top: int) -> tuple[LikelyToken, ...]:
    values, places = logits.softmax(dim=-1).topk(min(top, len(logits)))
    return tuple(
        LikelyToken(id=token, text=_text_of(tokenizer, token), probability=finite(value))
        for value, token in zip(values.tolist(), places.tolist(), strict=True)
    )


def _text_of(tokenizer: Any, token: int) -> str:
    """What a token spells; its name in the vocabulary where it is only some bytes of a character."""
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text
