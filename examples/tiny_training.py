"""Architecture, loss and training loop of the example model (see ``make_tiny_model``)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 1024
CONTEXT = 256
LONGEST_TEXT = 191  # tokens, BOS not counted: room to spare inside the context
BATCH = 8
POOL = 32  # batches sorted by length together, to waste little on padding
PEAK_RATE = 3e-3
WEIGHT_DECAY = 0.1
IGNORED = -100


def make_config(bos: int, eos: int) -> Qwen3Config:
    """Return the shape of the model: all parts of a Qwen3, about half a million parameters."""
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def make_model(bos: int, eos: int) -> Qwen3ForCausalLM:
    """Return a fresh model, its weights drawn from torch's global generator.

    Two departures from the library's initial values, without which so small a model takes
    thousands of steps to find out that names are to be copied from earlier in the text:

    * what writes into the residual stream starts small, so that a token's own embedding is not
      drowned by what the untrained layers add to it;
    * the gains of the query and key norms start at 2, since queries and keys of unit scale in so
      few dimensions cannot make attention sharp.
    """
    model = Qwen3ForCausalLM(make_config(bos, eos))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.div_((2 * model.config.num_hidden_layers) ** 0.5)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(2.0)
    return model


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return BOS and the text's tokens, as the evaluation of a document sees them."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) > LONGEST_TEXT:
        raise ValueError(f"a text has {len(ids)} tokens, more than {LONGEST_TEXT}")
    return [tokenizer.bos_token_id, *ids]


def collate(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right; return inputs and next-token labels.

    Padding needs no attention mask: it stands right of the text, where a causal model cannot look.
    """
    width = max(len(row) for row in rows) - 1
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        inputs[index, : len(row) - 1] = torch.tensor(row[:-1])
        labels[index, : len(row) - 1] = torch.tensor(row[1:])
    return inputs, labels


def sum_loss(model: Any, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, int]:
    """Return the summed next-token loss of the rows, in nats, and the number of tokens."""
    inputs, labels = collate(rows)
    logits = model(input_ids=inputs, use_cache=False).logits.float()
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss, int((labels != IGNORED).sum())


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """Return the loss in nats per token over all rows."""
    model.eval()
    ordered = sorted(rows, key=len)
    total, count = 0.0, 0
    for start in range(0, len(ordered), BATCH):
        loss, tokens = sum_loss(model, ordered[start : start + BATCH])
        total, count = total + loss.item(), count + tokens
    return total / count


def batches(tokenizer: Any, texts: Iterator[str], seed: int) -> Iterator[list[list[int]]]:
    """Yield batches of documents of similar length, each ending in EOS."""
    rng = random.Random(f"batches/{seed}")
    while True:
        rows = [[*encode(tokenizer, t), tokenizer.eos_token_id] for t in islice(texts, BATCH * POOL)]
        rows.sort(key=len)
        pool = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        rng.shuffle(pool)
        yield from pool


def learning_rate(step: int, steps: int) -> float:
    """Warm up linearly over the first 4 % of the steps, then fall along a cosine to 1 %."""
    warm = max(1, steps // 25)
    if step < warm:
        return PEAK_RATE * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def train(
    model: Any, stream: Iterator[list[list[int]]], probe: Sequence[Sequence[int]], steps: int
) -> list[dict[str, float]]:
    """Train in place; return the loss curve, with the loss on ``probe`` at each point of it."""
    # As usual, matrices decay and the gains of the norms do not.
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), eps=1e-8)
    every = max(1, steps // 30)
    curve: list[dict[str, float]] = []
    recent: list[float] = []
    for step in range(steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss, tokens = sum_loss(model, next(stream))
        loss = loss / tokens
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            point = {
                "step": step + 1,
                "train": round(sum(recent) / len(recent), 4),
                "heldout": round(mean_loss(model, probe), 4),
            }
            curve.append(point)
            recent.clear()
            print(json.dumps(point), flush=True)
    return curve
