"""Tiny random models as checkpoint folders with a tokenizer, ready to be looked at through the lens."""

from __future__ import annotations

from pathlib import Path

from models.tiny import build

__all__ = ["TEXTS", "folder_of"]

WORDS = [f"w{number}" for number in range(61)]
TEXTS = ("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11", "w40 w30 w20", "w5 w50 w15 w51 w25 w52 w35")


def folder_of(key: str, folder: Path, *, with_copy: bool = False, dtype: str = "F32", bos: bool = True) -> Path:
    """The tiny model of a family, with one token a word and, unless told otherwise, a BOS token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    build(key, with_copy=with_copy).write(folder, dtype)
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<pad>", **({"bos_token": "<s>"} if bos else {})
    ).save_pretrained(folder)
    return folder
