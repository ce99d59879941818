"""Byte-pair encodings: GPT-2's, one trained on a text, and imported ones. See tokenizer.py."""

import re
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from gptjax.config_checks import MOST
from gptjax.errors import UserError, import_extra

T = TypeVar("T")

LONG = 1_000_000
"""Characters of a text that takes more than a moment."""
LONGEST_WORD = 1000
"""Characters of the longest piece that a BPE is trained on."""
BREAK = re.compile(r"\S(?=[ \n])")
"""Its end is where a text can be cut: between a word and a blank or line break."""
# Letters, digits, others, blanks: a BPE merges nothing across these.
_KINDS = (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s")
LONG_WORD = re.compile("|".join(rf"(?<!{k}){k}{{{LONGEST_WORD + 1},}}" for k in _KINDS))


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, by tiktoken, which downloads its 1 MB table once."""

    def __init__(self) -> None:
        tiktoken = import_extra("tiktoken", "the tokenizer gpt2 needs")
        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # no network, or a file with another checksum
            raise UserError(
                f"the tokenizer gpt2 could not fetch its table ({type(error).__name__}); set "
                "TIKTOKEN_CACHE_DIR to a folder that has it, or use the tokenizer bpe"
            ) from None
        self.vocab_size = self._encoding.n_vocab
        self.start = self._encoding.eot_token
        self.ends = (self.start,)

    def encode(self, text: str) -> np.ndarray:
        return _encode(text, self._encoding.encode_ordinary, has_breaks=True)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._encoding.decode([int(i) for i in ids])

    def token_bytes(self) -> list[bytes]:
        """The bytes of every token in the order of ids, without the last one, <|endoftext|>."""
        return [self._encoding.decode_single_token_bytes(i) for i in range(self.start)]

    def to_dict(self) -> dict[str, Any]:
        return {"type": "gpt2"}


class BPETokenizer:
    """Byte-level byte-pair encoding trained on a text, by Hugging Face tokenizers.

    Also any imported tokenizer of that package. Its special tokens are not part of a text. Its
    model may have more embeddings than tokens (vocab_size), and its own start token (start).
    """

    def __init__(
        self,
        model_json: str,
        vocab_size: int | None = None,
        start: int | None = None,
        ends: Sequence[int] | None = None,
    ):
        """Without `ends`, a text ends at <|endoftext|> if the vocabulary has it.

        Raises ValueError for another JSON, and for tokens that are not below vocab_size.
        """
        tokenizers = import_extra("tokenizers", "the tokenizer bpe needs")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model_json)
        except BaseException as error:
            # The package raises nothing more specific than Exception, and its panics are none.
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise ValueError(str(error)) from None
        # A file may switch these on. They would silently cut or pad a text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        n_tokens = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.vocab_size = n_tokens if vocab_size is None else vocab_size
        if not 0 < n_tokens <= self.vocab_size:
            raise ValueError(f"{n_tokens:,} tokens for a vocabulary of {self.vocab_size:,}")
        self.start = int(next(iter(self.encode("\n")), 0)) if start is None else start
        if ends is None:
            end = self._tokenizer.token_to_id("<|endoftext|>")
            ends = () if end is None else (end,)
        self.ends = tuple(ends)
        for i in (self.start, *self.ends):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token {i} is not below {self.vocab_size:,}")

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BPETokenizer":
        most = MOST["vocab_size"]  # gptjax prepare does not check it
        if not 257 <= vocab_size <= most:
            rule = f"at least 257 and at most {most:,}"
            raise UserError(f"the vocabulary size of a BPE is {vocab_size}, but must be {rule}")
        trainer = import_extra("tokenizers", "the tokenizer bpe needs").ByteLevelBPETokenizer()
        pieces = [piece for line in text.splitlines(keepends=True) for piece in _cut(line)]
        is_long = len(text) > LONG
        if is_long:
            print(f"training a BPE on {len(text):,} characters", file=sys.stderr)
        shows = is_long and sys.stderr.isatty()
        _interruptible(lambda: trainer.train_from_iterator(pieces, vocab_size, show_progress=shows))
        return cls(trainer.to_str())

    def encode(self, text: str) -> np.ndarray:
        """Raises UserError for text without a token. A byte-level BPE has one for every text."""

        def encode(piece: str) -> list[int]:
            # As `encode`, but other threads may run meanwhile.
            return self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids

        try:
            return _encode(text, encode, self._has_breaks())
        except Exception as error:
            if type(error) is not Exception:  # the package raises nothing more specific
                raise
            split = self._tokenizer.pre_tokenizer
            pieces = {piece for piece, _ in split.pre_tokenize_str(text)} if split else {text}
            unknown = sorted(pieces - self._tokenizer.get_vocab().keys())
            raise UserError(
                f"text has {', '.join(map(repr, unknown[:20]))}, but no token of the vocabulary's "
                f"{self.vocab_size} for that"
            ) from None

    def _has_breaks(self) -> bool:
        """Whether it merges nothing across the place before a blank, as GPT-2's does not."""
        split, added = self._tokenizer.pre_tokenizer, self._tokenizer.get_added_tokens_decoder()
        return (
            self._tokenizer.normalizer is None
            and type(split).__name__ == "ByteLevel"
            and split.use_regex
            and not split.add_prefix_space
            and not any(re.search(r"\s", token.content) for token in added.values())
        )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of the token with this name, or None."""
        return self._tokenizer.token_to_id(token)

    def to_dict(self) -> dict[str, Any]:
        sizes = {"vocab_size": self.vocab_size, "start": self.start, "ends": list(self.ends)}
        return {"type": "bpe", "model": self._tokenizer.to_str(), **sizes}


def _encode(text: str, encode: Callable[[str], list[int]], has_breaks: bool) -> np.ndarray:
    """The ids of a text. A long one is encoded in pieces, if it has_breaks, and shows progress."""
    if len(text) < LONG:
        return np.array(encode(text), np.int32)
    parts, start = [], 0
    while start < len(text):
        found = BREAK.search(text, start + LONG) if has_breaks else None
        end = found.end() if found else len(text)
        piece = text[start:end]
        parts.append(np.array(_interruptible(lambda piece=piece: encode(piece)), np.int32))
        start = end
        if sys.stderr.isatty() and len(text) > 4 * LONG:
            done = f"\rencoded {100 * start // len(text)} % of {len(text):,} characters"
            print(done, end="\n" if start == len(text) else "", file=sys.stderr, flush=True)
    return np.concatenate(parts)


def _cut(line: str) -> list[str]:
    """A line in pieces to train on; joined they are the line. Only long words are cut.

    The time to train grows with the square of a word's length, and DNA is one word.
    """
    cuts = [0]
    if len(line) > LONGEST_WORD:
        for word in LONG_WORD.finditer(line):
            cuts += range(word.start(), word.end(), LONGEST_WORD)
    return [line[a:b] for a, b in pairwise([*dict.fromkeys(cuts), len(line)])]


def _interruptible(call: Callable[[], T]) -> T:
    """The result of a long call that computes outside of Python.

    Python cannot react to a signal before such a call returns, unless another thread makes it.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result()
