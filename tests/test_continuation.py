"""The printed text is decode(prompt + continuation), streamed or not, and ends where it should."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.commands import sample_text
from gptjax.commands.sample_options import Sample
from gptjax.data import tokenizer
from gptjax.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, WordTokenizer
from gptjax.decoding.continuation import Continuation

TEXT = "the cat sat near the water, naïve € \U0001f600\U0001f600 <|end|>\n" * 5
KINDS = ("char", "word", "byte", "bpe")


def printed(
    capsys: pytest.CaptureFixture,
    tok: tokenizer.TextTokenizer,
    prompt: str,
    new: list[list[int]],
    **options: object,
) -> str:
    """What gptjax sample prints for these new tokens of every sample, in pieces of two."""
    ids = tok.encode(prompt) if prompt else np.array([tok.start])
    new_BN = np.array(new)
    pieces = (new_BN[:, i : i + 2] for i in range(0, new_BN.shape[1], 2))
    command = Sample(Path("run"), num_samples=len(new), **options)  # pyright: ignore
    sample_text._show(command, prompt, ids, 3, pieces, tok)
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_what_is_shown_piece_by_piece_is_the_decoded_whole(kind: str, data: st.DataObject) -> None:
    tok = tokenizer.train(kind, TEXT, 280)
    ids = tok.encode(TEXT)[:60]
    cut = data.draw(st.integers(0, 30))
    row = Continuation(tok, ids[:cut])
    shown, at = row.prompt, cut
    while at < len(ids):
        n = data.draw(st.integers(1, 9))
        shown += row.add(ids[at : at + n])
        at += n
    shown += row.rest()
    if "\ufffd" not in row.prompt:  # a prompt is a text: it does not end inside a character
        assert shown == tok.decode(ids)
        assert row.prompt + row.text == shown


@pytest.mark.parametrize("stream", [True, False])
def test_words_keep_their_distance_from_the_prompt(
    capsys: pytest.CaptureFixture, stream: bool
) -> None:
    tok = WordTokenizer(["cat", "near", "the", "water"])
    text = printed(capsys, tok, "the  cat", [[1, 2, 3]], stream=stream)
    assert text == "the cat near the water\n"
    assert printed(capsys, tok, "", [[1, 2, 3]], stream=stream) == "near the water\n"
    two = printed(capsys, tok, "the cat", [[1, 2, 3], [3, 3, 3]])
    assert "\nthe cat near the water\n" in two
    assert two.endswith("\nthe cat water water water\n")


def test_json_has_the_prompt_and_what_follows_it(capsys: pytest.CaptureFixture) -> None:
    tok = WordTokenizer(["cat", "near", "the", "water"])
    fields = json.loads(printed(capsys, tok, "the cat", [[1, 2]], json=True))
    assert fields == {"prompt": "the cat", "text": " near the", "step": 3, "sample": 0}


def test_a_start_token_is_not_shown(capsys: pytest.CaptureFixture) -> None:
    assert printed(capsys, CharTokenizer("\nab"), "", [[1, 2]]) == "ab\n"


def with_end() -> tuple[BPETokenizer, int]:
    """A BPE that has an end-of-text token, and its id."""
    package = pytest.importorskip("tokenizers")
    inner = package.Tokenizer.from_str(BPETokenizer.train("the cat", 257).to_dict()["model"])
    inner.add_special_tokens(["<|endoftext|>"])
    tok = BPETokenizer(inner.to_str())
    assert len(tok.ends) == 1
    return tok, tok.ends[0]


@pytest.mark.parametrize("stream", [True, False])
def test_a_continuation_ends_before_the_end_of_text(
    capsys: pytest.CaptureFixture, stream: bool
) -> None:
    tok, end = with_end()
    the, cat = (tok.encode(word).tolist() for word in ("the", " cat"))
    new = [*cat, end, *the, *cat]
    assert printed(capsys, tok, "the", [new], stream=stream) == "the cat\n"
    on = printed(capsys, tok, "the", [new], stream=stream, ignore_eos=True)
    assert on == "the catthe cat\n"
    # Each of several samples has its own end; the others go on.
    both = printed(capsys, tok, "the", [new, [*cat * 3][: len(new)]])
    assert both.startswith("--- sample 1 of 2\nthe cat\n--- sample 2 of 2\nthe cat cat")
    again = tokenizer.from_dict(json.loads(json.dumps(tok.to_dict())))
    assert again.to_dict() == tok.to_dict()
    old = {name: value for name, value in tok.to_dict().items() if name != "ends"}
    assert tokenizer.from_dict(old).to_dict() == tok.to_dict()  # a run from before


def test_nothing_is_generated_after_all_samples_have_ended() -> None:
    tok, end = with_end()
    made = []

    def pieces():
        for _ in range(5):
            made.append(1)
            yield np.array([[end, end]])

    sample_text._show(Sample(Path("run")), "the", tok.encode("the"), 3, pieces(), tok)
    assert len(made) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stop", ["b\n", "b", "abab", "\n", "aa\nc", "none", "ab\nx"])
def test_a_continuation_ends_before_the_stop_text(
    capsys: pytest.CaptureFixture, stop: str, stream: bool
) -> None:
    tok = CharTokenizer("\nabc")
    new = "abab\naa\nc"
    text = printed(capsys, tok, "b", [tok.encode(new).tolist()], stop=stop, stream=stream)
    assert text == "b" + new.partition(stop)[0] + "\n"  # the prompt is not searched


def test_the_start_of_a_stop_text_is_not_shown_too_early() -> None:
    tok = ByteTokenizer()
    row = Continuation(tok, tok.encode("x"), stop="end€")
    assert row.add(tok.encode("a en")) == "a "
    assert row.add(tok.encode("d")) == ""
    assert row.add(tok.encode("€")[:2]) == ""
    assert row.add(tok.encode("€")[2:]) == ""
    assert row.is_complete
    assert row.add(tok.encode("more")) == row.rest() == ""
    assert row.text == "a "
