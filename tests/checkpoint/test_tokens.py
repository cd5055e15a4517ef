"""Tokens by their text, in the three families of vocabularies, each trained here from made-up sentences."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from planner.checkpoint import TokenChoice, TokensUnresolved, find_tokens

EXAMPLES = Path(__file__).parents[2] / "examples" / "tiny-model"
CORPUS = [
    "the cat sat on the mat in Paris",
    "Paris is a city and the cat is in Paris",
    "a dog and a cat ran to the city of Paris",
    "Paris Paris Paris, said the cat (Paris)",
] * 4


def _save(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def byte_level(folder: Path) -> Tokenizer:
    """As Qwen and Llama 3 have it, but for the normaliser, which is worse."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    original, tokenizer.normalizer = tokenizer.normalizer, normalizers.NFC()
    tokenizer.train_from_iterator([f"({line} (Paris" for line in CORPUS], trainer)
    tokenizer.normalizer = original
    return _save(tokenizer, folder)


def metaspace_bpe(folder: Path) -> Tokenizer:
    """As Llama 2 has it: a normaliser that puts a mark before every text, and bytes for what is not in it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Cut at spaces while it is trained, so that pieces do not run over several words.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(
        [f"({line} (Paris" for line in CORPUS], trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    )
    document = json.loads(tokenizer.to_str())
    document["pre_tokenizer"] = None
    document["added_tokens"] = document["added_tokens"][:2]  # bytes are pieces of the model only
    return _save(Tokenizer.from_str(json.dumps(document)), folder)


def metaspace_unigram(folder: Path) -> Tokenizer:
    """As T5 has it: spaces are dropped, and a mark is put before every word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _save(tokenizer, folder)


def words(folder: Path) -> Tokenizer:
    """Whole words, without spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["<unk>"]))
    return _save(tokenizer, folder)


def _refused(folder: Path, **given: Any) -> TokensUnresolved:
    with pytest.raises(TokensUnresolved) as caught:
        find_tokens(folder, **given)
    assert caught.value.hint
    return caught.value


def _one(choice: TokenChoice) -> tuple[int, str | None]:
    (token,) = choice.tokens
    assert choice.ids == (token.id,)
    return token.id, token.piece


@pytest.mark.parametrize(("family", "space"), [(byte_level, "Ġ"), (metaspace_bpe, "▁"), (metaspace_unigram, "▁")])
def test_a_text_is_the_token_that_is_spelled_so(
    family: Callable[[Path], Tokenizer], space: str, tmp_path: Path
) -> None:
    tokenizer = family(tmp_path)
    vocabulary = tokenizer.get_vocab()
    assert f"{space}Paris" in vocabulary
    id_, piece = _one(find_tokens(tmp_path, texts=[" Paris"]))
    assert (id_, piece) == (vocabulary[f"{space}Paris"], f"{space}Paris")
    assert _one(find_tokens(tmp_path, texts=["Paris"])) == (vocabulary["Paris"], "Paris")
    both = find_tokens(tmp_path, texts=["Paris"], spaces="both")
    assert both.ids == (vocabulary["Paris"], vocabulary[f"{space}Paris"])
    assert [token.sibling_text for token in both.tokens] == [" Paris", "Paris"]
    assert [token.sibling_id for token in both.tokens] == list(reversed(both.ids))
    assert find_tokens(tmp_path, texts=[" Paris"], spaces="both").ids == both.ids
    assert find_tokens(tmp_path, texts=[" Paris"], spaces="without").ids == (vocabulary["Paris"],)
    assert find_tokens(tmp_path, texts=["Paris"], spaces="with").ids == (vocabulary[f"{space}Paris"],)


@pytest.mark.parametrize("family", [metaspace_bpe, metaspace_unigram])
def test_the_prefix_that_a_tokenizer_adds_is_not_taken_for_the_text(
    family: Callable[[Path], Tokenizer], tmp_path: Path
) -> None:
    """The trap: both answer "Paris" with the token of " Paris"."""
    tokenizer = family(tmp_path)
    vocabulary = tokenizer.get_vocab()
    assert tokenizer.encode("Paris", add_special_tokens=False).tokens == ["▁Paris"]
    assert find_tokens(tmp_path, texts=["Paris"]).tokens[0].piece == "Paris"
    alone = [piece[1:] for piece in vocabulary if len(piece) > 2 and piece[0] == "▁" and piece[1:] not in vocabulary]
    assert alone
    for text in alone:
        assert tokenizer.encode(text, add_special_tokens=False).tokens == [f"▁{text}"]
        assert f"{f' {text}'!r} is one token (id {vocabulary[f'▁{text}']})" in _refused(tmp_path, texts=[text]).hint
        assert find_tokens(tmp_path, texts=[text], spaces="with").ids == (vocabulary[f"▁{text}"],)
        assert f"{text!r} is " in str(_refused(tmp_path, texts=[text], spaces="both"))


def test_a_normaliser_that_changes_letters_is_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    assert "Paris" not in "".join(tokenizer.encode("Paris").tokens)
    assert find_tokens(tmp_path, texts=["Paris"]).tokens[0].text == "Paris"


@pytest.mark.parametrize("family", [byte_level, metaspace_bpe, metaspace_unigram])
def test_a_text_of_several_tokens_is_an_error_that_shows_them(
    family: Callable[[Path], Tokenizer], tmp_path: Path
) -> None:
    vocabulary = family(tmp_path).get_vocab()
    error = _refused(tmp_path, texts=[" cat Paris"])
    assert "' cat Paris' is " in str(error)
    assert "' Paris' (id " in str(error)
    assert "`each`" in error.hint
    choice = find_tokens(tmp_path, texts=[" cat Paris"], each=True)
    assert "".join(token.text or "" for token in choice.tokens) == " cat Paris"
    assert [vocabulary[token.piece or ""] for token in choice.tokens] == list(choice.ids)
    assert {token.asked for token in choice.tokens} == {" cat Paris"}
    joined = find_tokens(tmp_path, texts=["catParis"], each=True)
    assert "".join(token.text or "" for token in joined.tokens) == "catParis", "no space is put before it"


def test_words_have_no_spaces(tmp_path: Path) -> None:
    vocabulary = words(tmp_path).get_vocab()
    assert find_tokens(tmp_path, texts=["Paris", "cat"]).ids == (vocabulary["Paris"], vocabulary["cat"])
    assert find_tokens(tmp_path, texts=["the cat"], each=True).ids == (vocabulary["the"], vocabulary["cat"])
    assert find_tokens(tmp_path, texts=["Paris"]).tokens[0].sibling_id is None
    assert "begins with a space" in str(_refused(tmp_path, texts=[" Paris"]))
    assert "begins with a space" in str(_refused(tmp_path, texts=["Paris"], spaces="with"))
    assert "is no token: the tokenizer makes '<unk>'" in str(_refused(tmp_path, texts=["Berlin"], each=True))


def test_parts_of_words_are_read_without_their_prefix(tmp_path: Path) -> None:
    vocabulary = {"[UNK]": 0, "paris": 1, "pa": 2, "##ris": 3, "cat": 4}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    _save(tokenizer, tmp_path)
    assert find_tokens(tmp_path, texts=["paris"]).ids == (1,)
    assert find_tokens(tmp_path, ids=[3]).tokens[0].text == "ris"
    assert find_tokens(tmp_path, texts=["cat paris"], each=True).ids == (4, 1)
    assert "makes 'paris' (id 1) of it, which is another text" in str(_refused(tmp_path, texts=["Paris"]))


def test_a_text_that_the_vocabulary_does_not_hold_is_an_error(tmp_path: Path) -> None:
    metaspace_unigram(tmp_path)
    error = _refused(tmp_path, texts=["Paris中"], each=True)
    assert "is no token: the tokenizer makes" in str(error)
    assert "'<unk>'" in str(error)


def test_bytes_that_stand_for_a_letter_are_shown_as_bytes(tmp_path: Path) -> None:
    metaspace_bpe(tmp_path)
    choice = find_tokens(tmp_path, texts=["é"], each=True)
    assert [token.text for token in choice.tokens] == ["\\xc3", "\\xa9"]
    assert [token.piece for token in choice.tokens] == ["<0xC3>", "<0xA9>"]
    assert _one(find_tokens(tmp_path, texts=["\n"]))[1] == "<0x0A>"
    # The text of eight letters is not the byte of that name.
    assert len(find_tokens(tmp_path, texts=["<0x0A>"], each=True).ids) > 1


def test_every_byte_is_read_as_the_library_writes_it(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    for text in ("é", "中", "\n", "\x7f", "\xad", "\x00", "🙂", "ĠParis"):
        choice = find_tokens(tmp_path, texts=[text], each=True)
        assert tokenizer.decode(list(choice.ids)) == text


def test_the_spelling_of_the_vocabulary_is_recognised_and_explained(tmp_path: Path) -> None:
    vocabulary = byte_level(tmp_path).get_vocab()
    error = _refused(tmp_path, texts=["ĠParis"])
    assert f"how the vocabulary spells ' Paris' (id {vocabulary['ĠParis']})" in error.hint


def test_added_tokens_mean_their_own_text(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    tokenizer.add_tokens(["new word", "ĠParisian"])
    _save(tokenizer, tmp_path)
    vocabulary = tokenizer.get_vocab()
    for text in ("<|end|>", "new word", "ĠParisian"):
        id_, piece = _one(find_tokens(tmp_path, texts=[text]))
        assert (id_, piece) == (vocabulary[text], text)
    assert len(find_tokens(tmp_path, texts=[" Parisian"], each=True).ids) > 1, "another text, though spelled the same"


def test_ids_are_named_and_out_of_range_ones_refused(tmp_path: Path) -> None:
    vocabulary = byte_level(tmp_path).get_vocab()
    size = len(vocabulary)
    choice = find_tokens(tmp_path, ids=[vocabulary["ĠParis"]], rows=size)
    assert choice.tokens[0].text == " Paris"
    assert choice.tokens[0].asked is None
    assert choice.tokens[0].sibling_text == "Paris"
    assert f"no token has the id {size}" in str(_refused(tmp_path, ids=[size]))
    assert "has no row: there are" in str(_refused(tmp_path, ids=[size + 5], rows=size + 5))
    assert find_tokens(tmp_path, ids=[size + 4], rows=size + 5).tokens[0].piece is None, "a row without a token"
    assert "has no row" in str(_refused(tmp_path, texts=[" Paris"], rows=vocabulary["ĠParis"]))
    assert find_tokens(tmp_path, texts=[" Paris"], rows=vocabulary["ĠParis"] + 1)


def test_each_token_is_listed_once_and_everything_wrong_at_once(tmp_path: Path) -> None:
    vocabulary = byte_level(tmp_path).get_vocab()
    paris = vocabulary["ĠParis"]
    assert find_tokens(tmp_path, texts=[" Paris", " Paris"], ids=[paris, 0]).ids == (paris, 0)
    error = _refused(tmp_path, texts=["Berlin", " Paris", "Rome", ""], ids=[10**9])
    for said in ("'Berlin' is ", "'Rome' is ", "a text of 0 characters", "no token has the id 1000000000"):
        assert said in str(error)
    assert "' Paris'" not in str(error)
    assert "a text of 300 characters" in str(_refused(tmp_path, texts=["x" * 300]))


def test_settings_for_training_and_batches_do_not_matter(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    before = find_tokens(tmp_path, texts=[" cat Paris"], each=True)
    tokenizer.model.dropout = 0.9
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=12)
    _save(tokenizer, tmp_path)
    assert all(find_tokens(tmp_path, texts=[" cat Paris"], each=True) == before for _ in range(5))


def test_a_spelling_that_is_not_understood_leaves_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>"))
    _save(tokenizer, tmp_path)
    assert "is not understood" in str(_refused(tmp_path, texts=["a"]))
    assert find_tokens(tmp_path, ids=[1]).tokens[0].piece == "a</w>"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be used"),
        (b"{", "cannot be used"),
        (b"[]", "cannot be used"),
        (b"[" * 100_000, "cannot be used"),
        (b'{"version": "9.0"}', "cannot be used"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"version":"1.0","added_tokens":[],"model":{"type":"Unigram","vocab":[],"unk_id":7}}', "cannot be used"),
    ],
)
def test_a_broken_tokenizer_is_a_clear_error(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert said in str(_refused(tmp_path, texts=["a"]))


def test_no_tokenizer_a_folder_and_a_huge_one_are_clear_errors(tmp_path: Path) -> None:
    error = _refused(tmp_path, texts=["a"])
    assert "there is no " in str(error)
    assert "tokenizer.json" in error.hint
    path = tmp_path / "tokenizer.json"
    path.mkdir()
    assert "tokenizer.json: " in str(_refused(tmp_path, texts=["a"]))
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    assert "at most 67,108,864 are read" in str(_refused(tmp_path, texts=["a"]))


def test_a_panic_of_the_library_is_an_error_like_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A pattern of a stranger that takes for ever: the library counts its steps, and panics."""
    document = json.loads(byte_level(tmp_path).to_str())
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
            document["pre_tokenizer"],
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert "PanicException" in str(_refused(tmp_path, texts=["a" * 255 + "b"], each=True))
    assert find_tokens(tmp_path, texts=["Paris"]).tokens[0].piece == "Paris", "what is one token needs no pattern"


def test_an_interruption_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level(tmp_path)

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.checkpoint.tokens.spelling_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_tokens(tmp_path, texts=["a"])


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tokenizer_with_a_wrong_place_gives_tokens_or_an_error(data: st.DataObject, tmp_path: Path) -> None:
    """One place of a sound file is replaced by something else: the rest of the program sees `TokensUnresolved` only."""
    document = _sound(tmp_path)
    place, path = document, []
    while isinstance(place, dict | list) and place and (not path or data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        path.append((place, key))
        place = place[key]
    holder, key = path[-1]
    holder[key] = data.draw(st.sampled_from([None, 0, -1, 2**32, 2**63, "", "x", [], {}, [[]], True, "ByteLevel", 0.5]))
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with contextlib.suppress(TokensUnresolved):
        choice = find_tokens(tmp_path, texts=["Paris", " cat"], ids=[3], each=True, rows=10_000)
        assert all(number < 10_000 for number in choice.ids)


def _sound(folder: Path) -> Any:
    kept = folder / "sound.json"
    if not kept.exists():
        byte_level(folder)
        shutil.copy(folder / "tokenizer.json", kept)
    return json.loads(kept.read_text())


def test_the_bundled_model_and_a_real_one(assets: Path) -> None:
    bundled = find_tokens(EXAMPLES, texts=[" said", "said"], each=True)
    assert bundled.tokens[0].piece == "Ġsaid"
    real = assets / "stories260k"
    assert find_tokens(real, texts=[" Lily"]).tokens[0].piece == "▁Lily"
    error = _refused(real, texts=["Lily"])
    assert "'Lily' is 2 tokens: 'L' (id" in str(error)
    assert "' Lily' is one token (id 317)" in error.hint
    assert find_tokens(real, texts=["Lily"], spaces="with").ids == (317,)
    assert find_tokens(real, texts=["\n", "<s>"]).ids == (13, 1)


def test_every_token_of_the_bundled_model_is_found_by_the_text_that_is_shown() -> None:
    tokenizer = Tokenizer.from_file(str(EXAMPLES / "tokenizer.json"))
    choice = find_tokens(EXAMPLES, ids=range(tokenizer.get_vocab_size()))
    texts = {token.id: token.text for token in choice.tokens if token.text and "\\x" not in token.text}
    assert len(texts) > 800
    assert find_tokens(EXAMPLES, texts=list(texts.values())).ids == tuple(texts)
    assert all(tokenizer.decode([number], skip_special_tokens=False) == text for number, text in texts.items())
