"""Text to token ids and back: characters, words, bytes, GPT-2's BPE, a BPE trained on the text.

A tokenizer has `vocab_size`, `start` (the token used for an empty prompt),
`encode(text) -> int32 ids (N,)`, `decode(ids) -> text`, and `to_dict()`, which `from_dict`
inverts. It is saved as JSON, never pickled.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptjax.errors import UserError, import_extra


class CharTokenizer:
    """One token per distinct character, in code-point order, as in the original PyTorch GPT."""

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self.start = max(characters.find("\n"), 0)
        self._code_points = np.array([ord(c) for c in characters], np.uint32)

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Raises UserError listing the characters that are not in the vocabulary."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = np.searchsorted(self._code_points, points).clip(max=self.vocab_size - 1)
        unknown = np.flatnonzero(self._code_points[ids] != points)
        if unknown.size:
            first = {text[i]: int(i) for i in reversed(unknown)}
            listed = ", ".join(
                f"{c!r} at {i}" for c, i in sorted(first.items(), key=lambda x: x[1])
            )
            raise UserError(
                f"text has characters that the model never saw: {listed} (positions count from 0); "
                f"its {self.vocab_size} characters are {self.characters!r}"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return "".join(self.characters[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "char", "characters": self.characters}


class WordTokenizer:
    """One token per distinct word. Words are separated by whitespace."""

    start = 0

    def __init__(self, words: list[str]):
        self.words = words
        self.vocab_size = len(words)
        self._ids = {word: i for i, word in enumerate(words)}

    @classmethod
    def train(cls, text: str) -> "WordTokenizer":
        return cls(sorted(set(text.split())))

    def encode(self, text: str) -> np.ndarray:
        """Raises UserError for a word that is not in the vocabulary."""
        try:
            return np.array([self._ids[word] for word in text.split()], np.int32)
        except KeyError as error:
            some = " ".join(self.words[:40]) + (" ..." if len(self.words) > 40 else "")
            raise UserError(
                f"the model never saw the word {error}; its {self.vocab_size} words are {some}"
            ) from None

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return " ".join(self.words[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "word", "words": self.words}


class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    vocab_size = 256
    start = ord("\n")

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(int(i) for i in ids).decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"type": "byte"}


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, by tiktoken, which downloads its 1 MB table once."""

    def __init__(self) -> None:
        tiktoken = import_extra("tiktoken", "--data.tokenizer gpt2 needs")
        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # no network, or a file with another checksum
            raise UserError(
                f"--data.tokenizer gpt2 could not fetch its table ({type(error).__name__}); set "
                "TIKTOKEN_CACHE_DIR to a folder that has it, or use --data.tokenizer bpe"
            ) from None
        self.vocab_size = self._encoding.n_vocab
        self.start = self._encoding.eot_token

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoding.encode_ordinary(text), np.int32)

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

    def __init__(self, model_json: str, vocab_size: int | None = None, start: int | None = None):
        self._tokenizer = import_extra(
            "tokenizers", "--data.tokenizer bpe needs"
        ).Tokenizer.from_str(model_json)
        # A file may switch these on. They would silently cut or pad a text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = vocab_size or self._tokenizer.get_vocab_size()
        self.start = int(self.encode("\n")[0]) if start is None else start

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BPETokenizer":
        if vocab_size < 257:
            raise UserError(f"--data.vocab-size is {vocab_size}, but a BPE needs at least 257")
        trainer = import_extra("tokenizers", "--data.tokenizer bpe needs").ByteLevelBPETokenizer()
        lines = text.splitlines(keepends=True)
        trainer.train_from_iterator(lines, vocab_size, show_progress=False)
        return cls(trainer.to_str())

    def encode(self, text: str) -> np.ndarray:
        """Raises UserError for text without a token. A byte-level BPE has one for every text."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
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
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of the token with this name, or None."""
        return self._tokenizer.token_to_id(token)

    def to_dict(self) -> dict[str, Any]:
        sizes = {"vocab_size": self.vocab_size, "start": self.start}
        return {"type": "bpe", "model": self._tokenizer.to_str(), **sizes}


TextTokenizer = CharTokenizer | WordTokenizer | ByteTokenizer | GPT2Tokenizer | BPETokenizer


class PairTokenizer:
    """A tokenizer for sources, one for targets, and the boundary token.

    The boundary is the first and last token of every target.
    """

    def __init__(self, source: TextTokenizer, target: TextTokenizer):
        self.source, self.target = source, target
        self.boundary = self.end = target.vocab_size
        self.start_ids = (self.boundary,)
        self.vocab_size = target.vocab_size + 1
        # A shared embedding table has the target's number of rows, including the boundary.
        self.source_vocab_size = max(source.vocab_size, source is target and self.vocab_size)

    def encode_source(self, text: str, longest: int) -> np.ndarray:
        """Raises UserError for a source that is empty, too long, or has unknown tokens."""
        try:
            ids = self.source.encode(text)
        except UnicodeEncodeError as error:
            raise UserError(f"the source is not UTF-8 at position {error.start}") from None
        except UserError as error:
            raise UserError(f"the source {text[:40]!r}: {error}") from None
        if not 0 < len(ids) <= longest:
            raise UserError(
                f"the source {text[:40]!r} has {len(ids)} tokens; the model reads 1 to {longest}"
            )
        return ids

    def to_dict(self) -> dict[str, Any]:
        target = None if self.source is self.target else self.target.to_dict()
        return {"type": "pair", "source": self.source.to_dict(), "target": target}


class SpeechTokenizer:
    """A tokenizer for transcripts, the tokens before each transcript, and the token after it.

    By default, one new token does both. Whisper's vocabulary has its own tokens for this.
    """

    def __init__(
        self,
        target: TextTokenizer,
        start_ids: Sequence[int] | None = None,
        end: int | None = None,
        vocab_size: int | None = None,
    ):
        self.target = target
        self.end = target.vocab_size if end is None else end
        self.start_ids = (self.end,) if start_ids is None else tuple(start_ids)
        self.vocab_size = vocab_size or max(target.vocab_size, self.end + 1)

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "speech",
            "target": self.target.to_dict(),
            "start_ids": list(self.start_ids),
            "end": self.end,
            "vocab_size": self.vocab_size,
        }


Tokenizer = TextTokenizer | PairTokenizer | SpeechTokenizer


def train(kind: str, text: str, vocab_size: int) -> TextTokenizer:
    """A tokenizer of a kind, "char", "word", "byte", "gpt2" or "bpe", for this text."""
    match kind:
        case "char":
            return CharTokenizer.train(text)
        case "word":
            return WordTokenizer.train(text)
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return GPT2Tokenizer()
        case "bpe":
            return BPETokenizer.train(text, vocab_size)
    raise UserError(f"--data.tokenizer {kind} is none of char, word, byte, gpt2, bpe")


def from_dict(saved: dict[str, Any]) -> Tokenizer:
    """Inverts `to_dict`. Raises UserError for anything else."""
    match saved:
        case {"type": "pair", "source": dict(source), "target": target}:
            one = text_tokenizer(source)
            return PairTokenizer(one, text_tokenizer(target) if target else one)
        case {"type": "speech", "target": dict(target), "start_ids": start_ids, "end": end}:
            return SpeechTokenizer(text_tokenizer(target), start_ids, end, saved.get("vocab_size"))
    return text_tokenizer(saved)


def text_tokenizer(saved: dict[str, Any]) -> TextTokenizer:
    """Inverts `to_dict` of a text tokenizer."""
    match saved:
        case {"type": "char", "characters": characters}:
            return CharTokenizer(characters)
        case {"type": "word", "words": words}:
            return WordTokenizer(words)
        case {"type": "byte"}:
            return ByteTokenizer()
        case {"type": "gpt2"}:
            return GPT2Tokenizer()
        case {"type": "bpe", "model": model}:
            return BPETokenizer(model, saved.get("vocab_size"), saved.get("start"))
    raise UserError("tokenizer.json was not written by this version")
