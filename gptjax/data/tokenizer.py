"""Text to token ids and back: characters, words, bytes, GPT-2's BPE, a BPE trained on the text.

A tokenizer has `vocab_size`, `start` (the token used for an empty prompt), `ends` (the tokens that
end a text, if there are any), `encode(text) -> int32 ids (N,)`, `decode(ids) -> text`, and
`to_dict()`, which `from_dict` inverts. It is saved as JSON, never pickled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

import numpy as np

from gptjax import json_files
from gptjax.data.bpe import BPETokenizer, GPT2Tokenizer
from gptjax.errors import UserError

T = TypeVar("T")


class CharTokenizer:
    """One token per distinct character, in code-point order, as in the original PyTorch GPT."""

    ends = ()

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
    ends = ()

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
    ends = ()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(int(i) for i in ids).decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"type": "byte"}


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
        """The ids (N,) of a source; all in lower or in upper case if only that is known.

        Raises UserError for a source that is empty, too long, or has unknown tokens.
        """
        errors: list[UserError] = []
        for spelling in (text, text.lower(), text.upper()):
            try:
                ids = self.source.encode(spelling)
                break
            except UnicodeEncodeError as error:
                raise UserError(f"the source is not UTF-8 at position {error.start}") from None
            except UserError as error:
                errors.append(error)
        else:
            raise UserError(f"the source {text[:40]!r}: {errors[0]}")
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
    raise UserError(f"the tokenizer {kind} is none of char, word, byte, gpt2, bpe")


FIX = "restore the file from a copy of the run"


class _Chars(TypedDict):
    characters: str


class _Words(TypedDict):
    words: list[str]


class _BPE(TypedDict):
    model: str
    vocab_size: NotRequired[int | None]
    start: NotRequired[int | None]
    ends: NotRequired[list[int] | None]


class _Pair(TypedDict):
    source: dict[str, Any]
    target: dict[str, Any] | None


class _Speech(TypedDict):
    target: dict[str, Any]
    start_ids: list[int]
    end: int
    vocab_size: NotRequired[int | None]


def read(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json. Raises UserError for a file that gptjax did not write."""
    return from_dict(json_files.read(path, dict[str, Any], FIX), str(path))


def from_dict(saved: dict[str, Any], where: str = "tokenizer.json") -> Tokenizer:
    """Inverts `to_dict`. Raises UserError for anything else, naming `where`."""
    match saved.get("type"):
        case "pair":
            form = json_files.check(saved, _Pair, where, FIX)
            source = text_tokenizer(form["source"], where, "source")
            target = form["target"]
            return PairTokenizer(
                source, source if target is None else text_tokenizer(target, where, "target")
            )
        case "speech":
            form = json_files.check(saved, _Speech, where, FIX)
            target = text_tokenizer(form["target"], where, "target")
            made = SpeechTokenizer(target, form["start_ids"], form["end"], form.get("vocab_size"))
            for i in (*made.start_ids, made.end):  # JAX would read another row of the table
                if not 0 <= i < made.vocab_size:
                    raise UserError(
                        f"{where}: there is no token {i} among {made.vocab_size}; {FIX}"
                    )
            return made
    return text_tokenizer(saved, where)


def text_tokenizer(
    saved: dict[str, Any], where: str = "tokenizer.json", place: str = ""
) -> TextTokenizer:
    """Inverts `to_dict` of a text tokenizer, which is at a place of the file `where`."""

    def form(form: type[T]) -> T:
        return json_files.check(saved, form, where, FIX, place)

    match saved.get("type"):
        case "char":
            characters = form(_Chars)["characters"]
            if not characters or list(characters) != sorted(set(characters)):
                raise UserError(f"{where}: characters are not all different and in order; {FIX}")
            return CharTokenizer(characters)
        case "word":
            words = form(_Words)["words"]
            if len(set(words)) < len(words):
                raise UserError(f"{where}: words are not all different; {FIX}")
            return WordTokenizer(words)
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return GPT2Tokenizer()
        case "bpe":
            bpe = form(_BPE)
            try:
                sizes = bpe.get("vocab_size"), bpe.get("start"), bpe.get("ends")
                return BPETokenizer(bpe["model"], *sizes)
            except ValueError as error:
                raise UserError(f"{where}: model is no tokenizer ({error}); {FIX}") from None
    kinds: Any = Literal["char", "word", "byte", "gpt2", "bpe"]
    at = f"{place}.type" if place else "type"
    json_files.check(saved.get("type"), kinds, where, FIX, at)
    raise AssertionError
