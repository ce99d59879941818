"""Text as batches of windows, each a pure function of (seed, step).

Each split is one flat array of tokens, in memory or memory-mapped. Windows of block_size + 1
tokens are cut on the host. That takes microseconds, and prefetching hides it, so the same code
serves a corpus of any size.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptjax.config import Config, TextDataConfig
from gptjax.data import downloads, tokenizer
from gptjax.data.batches import ALL, SAMPLED_EVALUATION, TRAINING, Batch
from gptjax.data.corpus import N_SHOWN
from gptjax.data.text_files import is_prepared, open_prepared, read_corpus, token_dtype
from gptjax.data.tokenizer import ByteTokenizer, TextTokenizer, Tokenizer
from gptjax.errors import UserError

# Targets per dispatch of an evaluation. Signals are checked between dispatches.
EVALUATION_TOKENS = 32_768


@dataclass(frozen=True)
class TextData:
    """A tokenized text, split into training and validation."""

    train: np.ndarray
    val: np.ndarray
    tokenizer: TextTokenizer
    source: str
    """Where the text came from, for messages."""
    sha256: str
    """Of the text's bytes: a run refuses to continue on another text."""
    description: str = ""
    """What was read, and how it begins."""

    one_shape = True
    """All batches have the same shapes, so many steps can share a dispatch."""
    sample_flags = ""
    """Extra options that `gptjax sample` needs."""

    @property
    def sizes(self) -> dict[str, int]:
        return {"train_tokens": len(self.train), "val_tokens": len(self.val)}

    @property
    def bytes_per_token(self) -> float:
        """Mean of the first tokens for validation: makes losses of other tokenizers comparable."""
        some = self.val[:1_000_000]
        return len(self.tokenizer.decode(some).encode()) / len(some)

    def tokens_per_sequence(self, config: Config) -> float:
        """The same for every window."""
        return config.model.block_size

    def batch(self, config: Config, step: int, rows: slice = ALL) -> Batch:
        """These rows of a step's training batch, leaves (B, T).

        config.data.windows chooses random windows, or epochs.
        """
        sizes = config.model.block_size, config.train.batch_size
        assert isinstance(config.data, TextDataConfig)
        if config.data.windows == "epochs":
            return epoch_batch(self.train, *sizes, config.seed, step, rows)
        return random_batch(self.train, *sizes, config.seed, TRAINING, step, rows)

    def validation(self, config: Config, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """These rows of the batches of the whole validation split, in groups of (K, B, T)."""
        return whole_split(self.val, config.model.block_size, batch_size, rows)

    def sampled_validation(
        self, config: Config, batch_size: int, rows: slice = ALL
    ) -> Iterator[Batch]:
        """These rows of random windows, the same ones every time, in groups like validation's.

        This is how the original PyTorch GPT measures its loss.
        """
        sizes = config.model.block_size, config.train.batch_size

        def batches() -> Iterator[Batch]:
            for step in range(config.train.eval_batches):
                batch = random_batch(self.val, *sizes, config.seed, SAMPLED_EVALUATION, step)
                for first in range(0, config.train.batch_size, batch_size):
                    last = first + batch_size
                    yield {name: leaf[first:last][rows] for name, leaf in batch.items()}

        left, group = batches(), _group_size(len(self.val), config.model.block_size, batch_size)
        while some := list(itertools.islice(left, group)):
            # Like validation's last group, the last one is padded with weights of zero.
            padding = some[0] | {"loss_weights": np.zeros_like(some[0]["loss_weights"])}
            some += [padding] * (group - len(some))
            yield {name: np.stack([batch[name] for batch in some]) for name in some[0]}


def load(config: TextDataConfig, block_size: int, tok: Tokenizer | None = None) -> TextData:
    """Reads, or downloads, and tokenizes the text that a configuration names.

    Uses `tok`, or makes the tokenizer that the configuration names. Raises UserError if the text
    is missing, empty, no text or prepared with another tokenizer, or if a split has fewer than
    block_size + 1 tokens.
    """
    if config.path and is_prepared(config.path):
        train, val, prepared_tok, sha256 = open_prepared(config.path)
        if tok is not None and tok.to_dict() != prepared_tok.to_dict():
            raise UserError(
                f"--data.path {config.path} was prepared with another tokenizer than that of the "
                "run to start from; give the text itself"
            )
        start = prepared_tok.decode(train[:N_SHOWN])[:N_SHOWN]
        n_tokens = f"{len(train) + len(val):,} tokens"
        description = f"token files in {config.path}/, {n_tokens}: {start!r}..."
        data = TextData(train, val, prepared_tok, str(config.path), sha256, description)
    else:
        path = config.path or downloads.fetch("tinyshakespeare")
        text, sha256, description = read_corpus(path, config.field)
        tok = tok or tokenizer.train(config.tokenizer, text, config.vocab_size)
        assert isinstance(tok, TextTokenizer)
        ids = tok.encode(text).astype(token_dtype(tok))
        train, val = np.split(ids, [_n_training_tokens(text, len(ids), tok, config.val_fraction)])
        source = str(config.path or "tinyshakespeare")
        description = description.replace(str(path), source, 1)
        data = TextData(train, val, tok, source, sha256, description)
    for split, tokens in (("training", data.train), ("validation", data.val)):
        if len(tokens) < block_size + 1:
            raise UserError(
                f"{data.source}: the {split} split has {len(tokens)} tokens, fewer than "
                f"--model.block-size {block_size} + 1; use more text or a smaller block size"
            )
    return data


def _n_training_tokens(text: str, n_tokens: int, tok: TextTokenizer, val_fraction: float) -> int:
    """How many tokens of a text are for training: the split is between tokens, never inside one."""
    share = 1 - val_fraction
    if isinstance(tok, ByteTokenizer):  # not inside a character either
        return len(text[: int(len(text) * share)].encode())
    return int(n_tokens * share)


def random_batch(
    tokens: np.ndarray,
    block_size: int,
    batch_size: int,
    seed: int,
    stream: int,
    step: int,
    rows: slice = ALL,
) -> Batch:
    """Windows at uniformly random places, leaves (B, T); a pure function of its arguments."""
    rng = np.random.default_rng((seed, stream, step))
    starts = rng.integers(0, len(tokens) - block_size, batch_size)
    return _windows(tokens, starts[rows], block_size)


def epoch_batch(
    tokens: np.ndarray, block_size: int, batch_size: int, seed: int, step: int, rows: slice = ALL
) -> Batch:
    """Adjacent windows, each once per epoch, leaves (B, T); a pure function of its arguments.

    Every epoch has a new order, and a new place in the text where its first window starts.
    """
    n_windows = _windows_per_epoch(len(tokens), block_size)
    starts = [
        _epoch(len(tokens), block_size, seed, number // n_windows)[number % n_windows]
        for number in range(step * batch_size, (step + 1) * batch_size)[rows]
    ]
    return _windows(tokens, np.array(starts), block_size)


def _windows_per_epoch(n_tokens: int, block_size: int) -> int:
    """One window fewer than fits, so that the first one can start at different places."""
    return max(1, n_tokens // block_size - 1)


@functools.lru_cache(maxsize=2)
def _epoch(n_tokens: int, block_size: int, seed: int, epoch: int) -> np.ndarray:
    """Where the windows of an epoch start, in their order."""
    n_windows = _windows_per_epoch(n_tokens, block_size)
    rng = np.random.default_rng((seed, TRAINING, epoch))
    first = rng.integers(n_tokens - n_windows * block_size)
    return first + block_size * rng.permutation(n_windows)


def _windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    """The windows of block_size + 1 tokens at these places, as inputs and targets."""
    windows = tokens[starts[..., None] + np.arange(block_size + 1)].astype(np.int32)
    weights = np.ones((*starts.shape, block_size), np.float32)
    return {"tokens": windows[..., :-1], "targets": windows[..., 1:], "loss_weights": weights}


def _group_size(n_tokens: int, block_size: int, batch_size: int) -> int:
    """Batches in a group of an evaluation of so many tokens."""
    n_batches = -(-(n_tokens - 1) // (block_size * batch_size))
    return max(1, min(n_batches, EVALUATION_TOKENS // (block_size * batch_size)))


def whole_split(
    tokens: np.ndarray, block_size: int, batch_size: int, rows: slice = ALL
) -> Iterator[Batch]:
    """Adjacent windows: every token except the first is a target exactly once.

    All groups have leaves of one shape (K, B, T). Padding of the last group has weight zero.
    """
    group = _group_size(len(tokens), block_size, batch_size)
    size = group * batch_size * block_size
    starts_KB = np.arange(0, size, block_size).reshape(group, batch_size)[:, rows]
    for first in range(0, len(tokens) - 1, size):
        piece = tokens[first : first + size + 1]
        batch = _windows(np.pad(piece, (0, size + 1 - len(piece))), starts_KB, block_size)
        target_place_KBT = starts_KB[..., None] + np.arange(1, block_size + 1)
        yield batch | {"loss_weights": (target_place_KBT < len(piece)).astype(np.float32)}
