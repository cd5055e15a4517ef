"""Make the bundled example model: texts, tokenizer and a small Qwen3 model trained on them.

Run ``python examples/make_tiny_model.py --out examples/tiny-model`` (minutes on one CPU core).
Everything is made here from a seed: the texts are drawn from ``grammar``, the tokenizer is trained
on such texts, and the model is trained on a stream of fresh documents, so nothing is seen twice.

The training stream is almost wholly stories, with ``INVENTORY_SHARE`` of inventory sheets.  The
small share is deliberate: the model has then converged on its main register, while the other one
is known to it but clearly less well mastered.  An edit of the weights that looks harmless in-domain
can so be caught out-of-domain, by a loss that still means something there.

The folder is staged beside its destination and renamed at the end, so it is never half-written.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers: nothing may be fetched

import safetensors
import tokenizers
import torch
import transformers
from grammar import REGISTERS, documents
from safetensors.torch import save_file
from tiny_training import (
    BATCH,
    CONTEXT,
    PEAK_RATE,
    VOCABULARY,
    WEIGHT_DECAY,
    batches,
    encode,
    make_model,
    mean_loss,
    train,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).resolve().parent
SOURCES = ("make_tiny_model.py", "tiny_training.py", "grammar.py", "derivation.py")
BOS, EOS = "<|bos|>", "<|eos|>"
DEFAULT_STEPS = 6400
INVENTORY_SHARE = 0.03
TOKENIZER_TEXTS = {"stories": 2000, "inventory": 500}
SPLITS = {
    "stories": {"calibration": 60, "search": 120, "heldout": 300},
    "inventory": {"calibration": 30, "search": 60, "heldout": 120},
}
PROMPTS = {"stories": "Once there was a", "inventory": "SHEET 2"}
PROBE = 100  # held-out stories measured at each point of the loss curve
SIZE_LIMIT = 2_000_000  # bytes, for the whole folder

Texts = Mapping[str, Mapping[str, Sequence[str]]]


def draw_splits(seed: int) -> Texts:
    """Draw the texts that are stored; no text occurs twice, within or across splits."""
    seen: set[str] = set()
    texts: dict[str, dict[str, list[str]]] = {}
    for register, sizes in SPLITS.items():
        texts[register] = {}
        for split, size in sizes.items():
            chosen = texts[register].setdefault(split, [])
            stream = documents(register, split, seed)
            while len(chosen) < size:
                text = next(stream).text
                if text not in seen:
                    seen.add(text)
                    chosen.append(text)
    return texts


def training_stream(seed: int, barred: set[str]) -> Iterator[str]:
    """Yield training documents without end, leaving out the stored texts."""
    rng = random.Random(f"mixture/{seed}")
    streams = {register: documents(register, "train", seed) for register in REGISTERS}
    while True:
        register = "inventory" if rng.random() < INVENTORY_SHARE else "stories"
        text = next(streams[register]).text
        if text not in barred:
            yield text


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on texts of both registers.

    Byte-level, so any text can be encoded; digits stand alone, so a number's tokens do not depend
    on how often it happened to be drawn.  Inventory has a larger share here than in the model's
    training: its poor loss should come from the model, not from words cut into letters.  There is
    no post-processor: nothing adds a BOS token unasked, whoever evaluates prepends it once.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        document.text
        for register, count in TOKENIZER_TEXTS.items()
        for document in islice(documents(register, "tokenizer", seed), count)
    ]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Fix what makes runs differ, and restore it: a caller in the same process keeps its own."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])


def write_json(path: Path, value: object) -> None:
    """Write readable JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer so that transformers of versions 4 and 5 both load it."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # Version 5 writes a class name of its own that version 4 does not know; both know this one.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, settings)


def save_model(model: Any, folder: Path) -> None:
    """Write the weights, rounded to bfloat16, as two shards with an index, and the configuration.

    ``save_pretrained`` would choose the shards by size; here the first holds the embedding and the
    lower half of the layers, so that a tool meets both a tensor's layer and its shard changing.
    """
    half = model.config.num_hidden_layers // 2
    shards: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied: the embedding is stored once
        parts = name.split(".")
        upper = name == "model.norm.weight" or (parts[1] == "layers" and int(parts[2]) >= half)
        shards[upper][name] = tensor.detach().to(torch.bfloat16).contiguous()
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # as the other files; safetensors writes for the owner only
        weight_map |= dict.fromkeys(shard, file)
    tensors = [tensor for shard in shards for tensor in shard.values()]
    total = {
        "total_parameters": sum(tensor.numel() for tensor in tensors),
        "total_size": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }
    index = {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    ).save_pretrained(folder)


def save_texts(texts: Texts, folder: Path) -> None:
    """Write each split as one JSON object per line."""
    folder.mkdir()
    for register, splits in texts.items():
        for split, chosen in splits.items():
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in chosen)
            (folder / f"{register}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, prompt: str) -> str:
    """Continue a prompt greedily until EOS."""
    ids = torch.tensor([encode(tokenizer, prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=CONTEXT - ids.shape[1])
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text


def measure(folder: Path, texts: Texts) -> dict[str, dict[str, Any]]:
    """Load the folder as a user would and measure it, in float32, against the grammar.

    Losses are in nats per token over whole documents, each from its BOS token; EOS is not counted,
    since a document's end follows from its text.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    figures: dict[str, dict[str, Any]] = {}
    for register, splits in texts.items():
        heldout = splits["heldout"]
        rows = [encode(tokenizer, text) for text in heldout]
        count = sum(len(row) - 1 for row in rows)
        loss = mean_loss(model, rows)
        entropy = sum(REGISTERS[register].nats(text) for text in heldout) / count
        figures[register] = {
            "heldout_documents": len(heldout),
            "heldout_tokens": count,
            "heldout_loss": round(loss, 6),
            "grammar_entropy": round(entropy, 6),
            "loss_over_entropy": round(loss / entropy, 4),
            "greedy_sample": greedy(model, tokenizer, PROMPTS[register]),
        }
    return figures


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_card(provenance: Mapping[str, Any]) -> str:
    """Return the README of the folder."""
    rows = "\n".join(
        f"| {name} | {figures['heldout_documents']} | {figures['heldout_loss']:.4f} "
        f"| {figures['grammar_entropy']:.4f} | {figures['loss_over_entropy']:.3f} |"
        for name, figures in provenance["registers"].items()
    )
    samples = "\n\n".join(
        f"Greedy continuation of `{PROMPTS[name]}`:\n\n```text\n{figures['greedy_sample']}\n```"
        for name, figures in provenance["registers"].items()
    )
    return f"""---
license: apache-2.0
language: en
library_name: transformers
---

# tiny-model

A Qwen3 language model of {provenance["parameters"]:,} parameters (bfloat16, two shards), trained
from scratch for this project on text that the project writes itself. It exists so that profiling
and editing weights can be tried and tested on a model that has really learned something.
It is of no use for anything else.

The texts come from a small probabilistic grammar (`examples/grammar.py`) whose exact entropy is
known, so the best reachable loss is known too. Training used {provenance["steps"]} batches of
{BATCH} fresh documents: stories, with {INVENTORY_SHARE:.0%} of inventory sheets, so that the second
register is out of the main domain, but not unknown.

| register | held-out documents | loss | grammar entropy | loss / entropy |
| --- | ---: | ---: | ---: | ---: |
{rows}

Loss and entropy are in nats per token, each document from its BOS token; the weights as stored,
computed in float32.

{samples}

`texts/` holds documents for calibration, search and held-out evaluation, none of which occurs in
the training stream. `PROVENANCE.json` holds seed, versions, loss curve and checksums. To make the
folder again: `python examples/make_tiny_model.py --out examples/tiny-model`.

Tokenise with `add_special_tokens=False` and prepend the BOS token. License: Apache-2.0.
"""


def build(folder: Path, seed: int, steps: int, threads: int) -> None:
    """Make the whole folder; it exists and is empty."""
    start = time.monotonic()
    texts = draw_splits(seed)
    save_texts(texts, folder / "texts")
    tokenizer = train_tokenizer(seed)
    save_tokenizer(tokenizer, folder)
    barred = {text for splits in texts.values() for chosen in splits.values() for text in chosen}
    probe = [encode(tokenizer, text) for text in texts["stories"]["heldout"][:PROBE]]
    with reproducible(seed, threads):
        model = make_model(tokenizer.bos_token_id, tokenizer.eos_token_id)
        stream = batches(tokenizer, training_stream(seed, barred), seed)
        curve = train(model, stream, probe, steps)
        save_model(model, folder)
        figures = measure(folder, texts)
    provenance = {
        "script": "examples/make_tiny_model.py",
        "license": "Apache-2.0",
        "seed": seed,
        "steps": steps,
        "threads": threads,
        "batch_documents": BATCH,
        "peak_learning_rate": PEAK_RATE,
        "weight_decay": WEIGHT_DECAY,
        "inventory_share": INVENTORY_SHARE,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "wall_seconds": round(time.monotonic() - start, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        },
        "sources_sha256": {name: sha256(HERE / name) for name in SOURCES},
        "files_sha256": {
            path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
        "registers": figures,
        "loss_curve": curve,
    }
    write_json(folder / "PROVENANCE.json", provenance)
    (folder / "README.md").write_text(model_card(provenance), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > SIZE_LIMIT:
        raise ValueError(f"the folder has {size} bytes, more than {SIZE_LIMIT}")
    for register, numbers in figures.items():
        loss, entropy = numbers["heldout_loss"], numbers["grammar_entropy"]
        print(f"{register}: held-out loss {loss:.4f}, grammar entropy {entropy:.4f} nats per token")
    print(f"{size} bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, build beside the destination, then rename."""
    parser = argparse.ArgumentParser(description="Make the bundled example model.")
    parser.add_argument("--out", type=Path, default=HERE / "tiny-model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    # One thread by default: the sums then do not depend on how many cores a machine has.
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    out: Path = options.out.resolve()
    if options.steps < 1 or options.threads < 1:
        parser.error("--steps and --threads must be at least 1")
    if out.exists() and not (out / "PROVENANCE.json").is_file():
        parser.error(f"{options.out} exists and is not a folder that this script made")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as holder:
        stage = Path(holder, "new")
        stage.mkdir()
        build(stage, options.seed, options.steps, options.threads)
        if out.exists():
            shutil.move(out, Path(holder, "old"))  # removed together with the holder
        stage.rename(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
