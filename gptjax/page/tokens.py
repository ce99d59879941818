"""Tokenizers in the form that web/tokenizer.js reads."""

import json
from typing import Any

from gptjax.data.bpe import BPETokenizer, GPT2Tokenizer
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer, TextTokenizer, Tokenizer
from gptjax.errors import UserError


def for_page(tok: Tokenizer) -> dict[str, Any]:
    """A tokenizer as a dict. Raises UserError for a kind that a page does not have."""
    match tok:
        case PairTokenizer():
            sides = {"source": _text(tok.source), "target": _text(tok.target)}
            return {"type": "pair", **sides, "start_ids": list(tok.start_ids), "end": tok.end}
        case SpeechTokenizer():
            ends = {"start_ids": list(tok.start_ids), "end": tok.end}
            return {"type": "speech", "target": _text(tok.target), **ends}
    return _text(tok)


def _text(tok: TextTokenizer) -> dict[str, Any]:
    ends = {"start": tok.start, "ends": list(tok.ends)}
    match tok:
        case GPT2Tokenizer():
            tokens = [token.decode("latin-1") for token in tok.token_bytes()]
            return {
                "type": "bpe",
                "tokens": [*tokens, "<|endoftext|>"],
                "special": ends["ends"],
                **ends,
            }
        case BPETokenizer():
            return {"type": "bpe", **_byte_pairs(json.loads(tok.to_dict()["model"])), **ends}
    return {**tok.to_dict(), **ends}


def _byte_pairs(model: dict[str, Any]) -> dict[str, Any]:
    """{"tokens", "special"} of a byte-level BPE of Hugging Face tokenizers.

    Raises UserError for any other tokenizer of that package.
    """
    split = model["pre_tokenizer"] or {}
    if model["model"]["type"] != "BPE" or (split.get("type"), split.get("use_regex", True)) != (
        "ByteLevel",
        True,
    ):
        raise UserError(
            "the run's tokenizer is no byte-level BPE as GPT-2's, which is what a page can read"
        )
    if split.get("add_prefix_space") or model["normalizer"]:
        raise UserError("the run's tokenizer changes its text, which a page cannot do")
    special = {token["id"]: token["content"] for token in model["added_tokens"]}
    vocabulary = {i: _bytes(token) for token, i in model["model"]["vocab"].items()}
    vocabulary |= special
    tokens = [vocabulary.get(i, "") for i in range(max(vocabulary) + 1)]
    return {"tokens": tokens, "special": sorted(special)}


def _byte_names() -> dict[str, str]:
    """The printable character that stands for each byte in GPT-2's vocab.json (Radford 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    names = {chr(b): chr(b) for b in printable}
    return names | {chr(256 + i): chr(b) for i, b in enumerate(others)}


_BYTES = _byte_names()


def _bytes(token: str) -> str:
    """The bytes of a token, as characters 0 ... 255."""
    return "".join(_BYTES.get(c, c) for c in token)
