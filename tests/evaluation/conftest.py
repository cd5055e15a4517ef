"""A tiny random Qwen3 with sharp predictions, variants of it, and texts drawn from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

WORDS = [f"w{number}" for number in range(61)]


@dataclass(frozen=True)
class Models:
    """Folders of checkpoints, and documents that `base` itself generated at temperature 1 and (`sharp`) at 1/2."""

    base: Path
    documents: tuple[str, ...]
    sharp: tuple[str, ...]

    def scaled(self, factor: float) -> Path:
        """All logits times `factor`."""
        return self._variant(f"scaled {factor}", "model.norm.weight", lambda weight: weight * factor)

    def filled(self, value: float) -> Path:
        """The final norm's weight replaced by one number."""
        return self._variant(f"filled {value}", "model.norm.weight", lambda weight: weight.clone().fill_(value))

    def noisy(self, amount: float) -> Path:
        """One matrix damaged: knowledge is lost that no temperature gives back."""
        import torch

        def change(weight: torch.Tensor) -> torch.Tensor:
            return weight + amount * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))

        return self._variant(f"noisy {amount}", "model.layers.1.mlp.down_proj.weight", change)

    def _variant(self, name: str, tensor: str, change: Callable) -> Path:
        from safetensors.torch import load_file, save_file

        folder = self.base.parent / name
        if not folder.exists():
            shutil.copytree(self.base, folder)
            tensors = load_file(folder / "model.safetensors")
            tensors[tensor] = change(tensors[tensor])
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    @staticmethod
    def write_tokenizer(folder: Path, *, bos: bool = True, words: list[str] = WORDS) -> None:
        """One token a word, words separated by spaces."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        special = {"bos_token": "<s>"} if bos else {}
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", **special
        ).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Such small models are slower on several threads.
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(7)
    model = Qwen3ForCausalLM(config).eval()
    base = root / "base"
    model.save_pretrained(base)
    Models.write_tokenizer(base)

    def draw(seed: int, count: int, temperature: float) -> tuple[str, ...]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.ones(count, 1, dtype=torch.int64)
        with torch.inference_mode():
            for _ in range(24):
                logits = model(ids).logits[:, -1] / temperature
                logits[:, :3] = -torch.inf
                ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
        lengths = torch.randint(8, 25, (count,), generator=generator).tolist()
        return tuple(
            " ".join(WORDS[token - 3] for token in row[1 : 1 + length])
            for row, length in zip(ids.tolist(), lengths, strict=True)
        )

    return Models(base, draw(1, 80, 1.0), draw(2, 80, 0.5))


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """Write documents to text.jsonl and a suite file beside it; `extra` is appended to the suite."""

    def write(documents: tuple[str, ...], extra: str = "", max_tokens: int | None = 20) -> Path:
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        (tmp_path / "text.jsonl").write_text(lines)
        cut = f"max_tokens = {max_tokens}\n" if max_tokens else ""
        metric = f'[[metric]]\nname = "words"\nkind = "text_loss"\ntext = "text.jsonl"\n{cut}'
        (tmp_path / "suite.toml").write_text(metric + extra)
        return tmp_path / "suite.toml"

    return write


@pytest.fixture(scope="session")
def assets() -> Path:
    default = Path(__file__).parents[2].parent / "shared" / "assets"
    folder = Path(os.environ.get("PLANNER_ASSETS", default))
    if not (folder / "stories260k").is_dir():
        pytest.skip(f"no real model: {folder} has no stories260k (PLANNER_ASSETS names the folder)")
    import torch

    torch.set_num_threads(1)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of tests that run side by side only wait for each other."""
    monkeypatch.setattr("planner.inference.loading.cores", lambda: 1)
