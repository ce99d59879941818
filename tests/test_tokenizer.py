"""Every tokenizer inverts itself, survives JSON, and says what it cannot do in one line."""

import json
import sys
from typing import Any

import numpy as np
import pytest
import requests
import tiktoken

from gptjax.data import tokenizer
from gptjax.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
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


@pytest.fixture(params=["char", "byte", "gpt2", "bpe"])
def trained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """A tokenizer of each kind, made as train.py makes it."""
    monkeypatch.setattr(tiktoken, "get_encoding", fake_gpt2)
    return tokenizer.train(request.param, TEXT, vocab_size=300)


def test_decode_inverts_encode(trained: Tokenizer) -> None:
    ids = trained.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert ids.min() >= 0
    assert ids.max() < trained.vocab_size
    assert trained.decode(ids) == TEXT
    assert trained.decode(ids.tolist()) == TEXT


def test_the_empty_text_has_no_tokens(trained: Tokenizer) -> None:
    ids = trained.encode("")
    assert ids.shape == (0,)
    assert ids.dtype == np.int32
    assert trained.decode(ids) == ""


def test_json_round_trip(trained: Tokenizer) -> None:
    again = tokenizer.from_dict(json.loads(json.dumps(trained.to_dict())))
    assert type(again) is type(trained)
    assert again.vocab_size == trained.vocab_size
    assert again.start == trained.start
    np.testing.assert_array_equal(again.encode(TEXT), trained.encode(TEXT))
    assert again.to_dict() == trained.to_dict()


def test_the_start_token_is_documented(trained: Tokenizer) -> None:
    # A line break for characters, bytes and our own BPE; GPT-2 has a token of its own for it.
    text = "<|endoftext|>" if isinstance(trained, GPT2Tokenizer) else "\n"
    assert trained.decode([trained.start]) == text


def test_characters_are_numbered_in_code_point_order() -> None:
    tok = CharTokenizer.train("ban\U0001f600ana\n")
    assert tok.characters == "\nabn\U0001f600"
    assert tok.encode("nab\U0001f600").tolist() == [3, 1, 2, 4]


def test_characters_without_a_line_break_start_at_the_first() -> None:
    assert CharTokenizer.train("cab").start == 0


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


def test_gpt2_reads_the_name_of_a_special_token_as_ordinary_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", fake_gpt2)
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
    assert "--data.tokenizer bpe" in str(caught.value)
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


def test_bpe_encodes_what_it_never_saw() -> None:
    tok = BPETokenizer.train("abc " * 50, 260)
    assert tok.decode(tok.encode("ж\U0001f600z")) == "ж\U0001f600z"


def test_bpe_needs_room_for_the_bytes() -> None:
    with pytest.raises(UserError, match=r"--data\.vocab-size is 256, but a BPE needs at least 257"):
        BPETokenizer.train("text", 256)


@pytest.mark.parametrize("saved", [{}, {"type": "sentencepiece"}, {"type": "bpe"}])
def test_a_foreign_tokenizer_json_is_refused(saved: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not written by this version"):
        tokenizer.from_dict(saved)


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
