"""Every tokenizer inverts itself, survives JSON, and says what it cannot do in one line."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data import bpe, tokenizer
from gptjax.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    TextTokenizer,
    Tokenizer,
)
from gptjax.errors import UserError

TEXT = "First Citizen:\n\n  Speak, naïve friend.\tÜber 12 €? \U0001f600\r\nAll: <|endoftext|>\n" * 3


def fake_gpt2(name: str) -> tiktoken.Encoding:
    """tiktoken's own code over a table of single bytes: GPT-2's real table needs a network."""
    assert name == "gpt2"
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )


KINDS = ("char", "byte", "gpt2", "bpe")


def train(kind: str, text: str) -> TextTokenizer:
    """A tokenizer as train.py makes it; GPT-2's with a table of single bytes."""
    return tokenizer.train(kind, text, vocab_size=300)


def again(tok: TextTokenizer) -> Tokenizer:
    """The tokenizer after a round trip through JSON."""
    return tokenizer.from_dict(json.loads(json.dumps(tok.to_dict())))


@pytest.fixture(autouse=True, scope="module")
def table_of_gpt2() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "get_encoding", fake_gpt2)
        yield


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))  # no lone surrogates
def test_any_text_survives_encode_decode_and_json(kind: str, text: str) -> None:
    tok = train(kind, TEXT + text)
    saved = again(tok)
    assert type(saved) is type(tok)
    assert saved.to_dict() == tok.to_dict()
    assert (saved.vocab_size, saved.start) == (tok.vocab_size, tok.start)
    for part in (text, TEXT, ""):
        ids = tok.encode(part)
        assert ids.dtype == np.int32
        assert ids.ndim == 1
        assert ((ids >= 0) & (ids < tok.vocab_size)).all()
        assert tok.decode(ids) == tok.decode(ids.tolist()) == part
        np.testing.assert_array_equal(saved.encode(part), ids)
    assert tok.encode("").size == 0


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_words_survive_encode_decode_and_json(text: str) -> None:
    tok = train("word", text)
    assert tok.decode(tok.encode(text)) == " ".join(text.split())
    assert again(tok).to_dict() == tok.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_token_is_documented(kind: str) -> None:
    # A line break for characters, bytes and our own BPE; GPT-2 has a token of its own for it.
    tok = train(kind, TEXT)
    assert tok.decode([tok.start]) == ("<|endoftext|>" if kind == "gpt2" else "\n")


def test_characters_are_numbered_in_code_point_order() -> None:
    tok = CharTokenizer.train("ban\U0001f600ana\n")
    assert tok.characters == "\nabn\U0001f600"
    assert tok.encode("nab\U0001f600").tolist() == [3, 1, 2, 4]
    assert CharTokenizer.train("cab").start == 0  # there is no line break


# Below, between and above the code points of the vocabulary: a binary search meets each case.
def test_unknown_characters_are_listed_with_their_first_position() -> None:
    tok = CharTokenizer.train("bdf\n")
    with pytest.raises(UserError) as caught:
        tok.encode("bbZdyaZ\U0001f600f")
    message = str(caught.value)
    assert "'Z' at 2, 'y' at 4, 'a' at 5, '\U0001f600' at 7 " in message
    assert "4 characters are '\\nbdf'" in message
    assert "'b' at" not in message
    assert "\n" not in message


def test_bytes_that_are_no_text_decode_to_a_replacement_character() -> None:
    euro = ByteTokenizer().encode("€")
    assert euro.tolist() == [0xE2, 0x82, 0xAC]
    assert ByteTokenizer().decode(euro[:2]) == "\ufffd"


def test_gpt2_reads_the_name_of_a_special_token_as_ordinary_text() -> None:
    assert 256 not in GPT2Tokenizer().encode("<|endoftext|>")


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("no route to host"),
        # What tiktoken says of a page that a proxy sent in place of the table.
        ValueError("Hash mismatch for data downloaded from https://openaipublic"),
    ],
)
def test_gpt2_without_its_table_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unreachable(name: str) -> Any:
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(UserError, match=type(error).__name__) as caught:
        tokenizer.train("gpt2", "text", vocab_size=300)
    assert "TIKTOKEN_CACHE_DIR" in str(caught.value)
    assert "or use the tokenizer bpe" in str(caught.value)
    assert "--data" not in str(caught.value)  # `gptjax prepare` has other options
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "module"), [("gpt2", "tiktoken"), ("bpe", "tokenizers")])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{kind} needs the package {module}: pip install"):
        tokenizer.train(kind, "text", vocab_size=300)


def test_bpe_merges_what_is_frequent() -> None:
    text = "the cat sat on the mat with the rat\n" * 20
    small, large = (BPETokenizer.train(text, vocab_size) for vocab_size in (257, 300))
    assert small.vocab_size == 257
    assert 257 < large.vocab_size <= 300
    assert len(large.encode(text)) < len(small.encode(text)) < len(text)
    assert large.decode(large.encode("ж\U0001f600z")) == "ж\U0001f600z"  # never seen
    with pytest.raises(UserError, match=r"the vocabulary size of a BPE is 256, but must be at lea"):
        BPETokenizer.train("text", 256)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({}, "type is null, but must be one of char, word, byte, gpt2, bpe"),
        ({"type": "sentencepiece"}, "type is 'sentencepiece', but must be one of char, word"),
        ({"type": ["char"]}, "type is ['char'], but must be one of char, word"),
        ({"type": "bpe"}, "t.json has no model"),
        ({"type": "bpe", "model": "[" * 9999}, "model is no tokenizer"),
        ({"type": "char", "characters": ["a"]}, "characters is ['a'], but must be a text"),
        ({"type": "char", "characters": 3}, "characters is 3, but must be a text"),
        ({"type": "char", "characters": None}, "characters is null, but must be a text"),
        ({"type": "char", "characters": "ba"}, "characters are not all different and in order"),
        ({"type": "char", "characters": "aab"}, "characters are not all different and in order"),
        ({"type": "char", "characters": "\ud800"}, "without half a surrogate pair"),
        ({"type": "word", "words": "cat"}, "words is 'cat', but must be a list"),
        ({"type": "word", "words": ["a", 3]}, "words[1] is 3, but must be a text"),
        ({"type": "word", "words": ["a", "a"]}, "words are not all different"),
        ({"type": "pair", "source": [], "target": None}, "source is [], but must be an object"),
        (
            {"type": "pair", "source": {"type": "byte"}, "target": {"type": "char"}},
            "t.json has no target.characters",
        ),
        (
            {"type": "speech", "target": {"type": "byte"}, "start_ids": [257], "end": 256},
            "there is no token 257 among 257",
        ),
        (
            {"type": "speech", "target": {"type": "byte"}, "start_ids": [True], "end": 256},
            "start_ids[0] is true, but must be a whole number",
        ),
    ],
    ids=str,
)
def test_a_foreign_tokenizer_json_is_refused(saved: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        tokenizer.from_dict(saved, "t.json")
    message = str(caught.value)
    assert message.startswith("t.json")
    assert words in message
    assert message.endswith("restore the file from a copy of the run")


def test_a_bpe_whose_start_token_is_none_of_its_own_is_refused() -> None:
    saved = train("bpe", TEXT).to_dict()
    with pytest.raises(UserError, match="token 300 is not below 300"):
        tokenizer.from_dict(saved | {"start": 300, "vocab_size": 300})


def test_a_tokenizer_that_was_told_to_cut_and_to_fill_up_does_neither():
    made = BPETokenizer.train("the cat sat on the mat. " * 20, 270)
    told = pytest.importorskip("tokenizers", reason="an extra: pip install -e '.[bpe]'")
    inner = told.Tokenizer.from_str(made.to_dict()["model"])
    inner.enable_truncation(4)
    inner.enable_padding(length=64)
    text = "the mat sat on the cat. " * 3
    again = BPETokenizer(inner.to_str())
    np.testing.assert_array_equal(again.encode(text), made.encode(text))
    assert again.decode(again.encode("cat")) == "cat"


# --- text without spaces


@pytest.mark.parametrize("word", ["a", "1", "-", "_", " ", "é"])
def test_only_long_words_are_cut_to_train_on(word: str) -> None:
    long = word * 3_456
    other = "a" if word in "-_" else "."
    for line in (long, f"{other}{long}{other}\n", f"x {long}\n{long} y"):
        pieces = bpe._cut(line)
        assert "".join(pieces) == line
        assert max(map(len, pieces)) <= 1_002
        assert len(pieces) >= 4
    short = f"{word * 1_000}{other}" * 3
    assert bpe._cut(short) == [short]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab1 -\n"), min_size=1, max_size=50), st.integers(2, 5))
def test_pieces_joined_are_the_line(text: str, longest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "LONGEST_WORD", longest)
        assert "".join(bpe._cut(text)) == text


DNA = "".join(np.random.default_rng(0).choice(list("ACGT"), 400_000))


@pytest.mark.parametrize("text", [DNA, " " * 400_000, "x9" * 200_000], ids=["dna", "blank", "x9"])
def test_a_bpe_of_text_without_words_takes_seconds(
    text: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200,000 characters took 30 s, four times as many 8 minutes."""
    monkeypatch.setattr(bpe, "LONG", 300_000)  # characters, of which one is told
    begin = time.monotonic()
    tok = BPETokenizer.train(text, 300)
    ids = tok.encode(text)
    assert time.monotonic() - begin < 60  # about 1 s, but others may use the machine
    assert tok.decode(ids) == text
    assert "training a BPE on 400,000 characters" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", "encode"])
def test_a_signal_ends_the_work_of_a_bpe_at_once(part: str) -> None:
    class Rung(Exception):
        pass

    def ring(signum: int, frame: Any) -> None:
        raise Rung

    tok = BPETokenizer.train("ACGT " * 50, 270)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    begin = time.monotonic()
    try:
        with pytest.raises(Rung):
            BPETokenizer.train(DNA * 9, 300) if part == "train" else tok.encode(DNA * 9)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < 2
