"""Pairs of sequences as padded batches, each a pure function of (seed, step).

A pair is a source and a target: a line of a TAB-separated file, or a word and a pronunciation of
CMUdict. A source may have several correct targets; they stay in one split. A batch has pairs of
similar length, so it has little padding. Padding has loss weight zero.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.config import Config
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig
from gptjax.data import downloads, tokenizer
from gptjax.data.batches import ALL, Batch, bucket_batch
from gptjax.data.text_files import read_text
from gptjax.data.tokenizer import PairTokenizer, TextTokenizer, Tokenizer
from gptjax.errors import UserError

Pairs = dict[str, list[str]]
"""The targets of every source."""

# Pairs are ordered by length and cut into buckets at these shares. There are few buckets, because
# every bucket has its own batch shape, and every shape compiles a train step.
BUCKET_ENDS = (0.6, 0.85, 0.97)


@dataclass(frozen=True)
class Bucket:
    """N pairs of similar length, padded to the longest: ids (N, S) and (N, T + 1), int32.

    A target starts and ends with the boundary token. Its length counts only the second one.
    """

    source_NS: np.ndarray
    source_length_N: np.ndarray
    target_NT: np.ndarray
    target_length_N: np.ndarray

    def batch(self, pairs_B: np.ndarray) -> Batch:
        """The batch of these pairs. -1 is a row of padding."""
        n_source, n_target = self.source_NS.shape[1], self.target_NT.shape[1] - 1
        counts_BT = np.arange(n_target) < self.target_length_N[pairs_B, None]
        return {
            "source": self.source_NS[pairs_B],
            "source_mask": np.arange(n_source) < self.source_length_N[pairs_B, None],
            "tokens": self.target_NT[pairs_B, :-1],
            "targets": self.target_NT[pairs_B, 1:],
            "loss_weights": (counts_BT & (pairs_B >= 0)[:, None]).astype(np.float32),
        }

    def in_order(self, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """These rows of batches that hold every pair once."""
        n_pairs = len(self.source_NS)
        for first in range(0, n_pairs, batch_size):
            pairs_B = np.arange(first, first + batch_size)[rows]
            yield self.batch(np.where(pairs_B < n_pairs, pairs_B, -1))


@dataclass(frozen=True)
class PairData:
    """Tokenized pairs, split by source into training, validation and test."""

    train: Pairs
    val: Pairs
    test: Pairs
    buckets: tuple[Bucket, ...]
    """Of the training pairs."""
    val_buckets: tuple[Bucket, ...]
    tokenizer: PairTokenizer
    source: str
    """Where the pairs came from, for messages."""
    sha256: str
    """Of the file's bytes: a run refuses to continue on other pairs."""

    one_shape = False
    """Buckets have different shapes, so a dispatch takes one step."""

    @property
    def sample_flags(self) -> str:
        """Extra options that `gptjax sample` needs."""
        return f' --source "{next(iter(self.val))}"'

    @property
    def sizes(self) -> dict[str, int]:
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {
            f"{name}_pairs": sum(len(targets) for targets in pairs.values())
            for name, pairs in splits.items()
        }

    def tokens_per_sequence(self, config: Config) -> float:
        """Mean number of source and target tokens of a pair, including its final boundary."""
        lengths = [b.source_length_N + b.target_length_N for b in self.buckets]
        return float(np.concatenate(lengths).mean())

    def batch(self, config: Config, step: int, rows: slice = ALL) -> Batch:
        """These rows of a step's training batch, leaves (B, S) and (B, T); see bucket_batch."""
        sizes = tuple(len(bucket.source_NS) for bucket in self.buckets)
        bucket, pairs_B = bucket_batch(sizes, config.train.batch_size, config.seed, step)
        return self.buckets[bucket].batch(pairs_B[rows])

    def validation(self, config: Config, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """These rows of the batches of the validation split, leaves (1, B, S) and (1, B, T)."""
        for bucket in self.val_buckets:
            for batch in bucket.in_order(batch_size, rows):
                yield {name: leaf[None] for name, leaf in batch.items()}


def load(config: Config, tok: Tokenizer | None = None) -> PairData:
    """Reads, or downloads, splits and tokenizes the pairs that a configuration names.

    The validation and the test split get val_fraction of the sources each. The split depends on
    the sources, not on their order. Uses `tok`, or makes a tokenizer from all pairs. Raises
    UserError for a file that is missing, empty or has no pairs, for an empty split, and for a pair
    that is too long.
    """
    model, c = config.model, config.data
    assert isinstance(model, EncoderDecoderConfig)
    assert isinstance(c, PairsDataConfig)
    path = c.path or downloads.fetch("cmudict")
    text, sha256 = read_text(path)
    if path.suffix == ".dict":
        pairs = parse_cmudict(text, path, stress=c.name == "cmudict_stress")
    else:
        pairs = parse_tsv(text, path)
    tok = tok or _tokenizer(config, pairs)
    assert isinstance(tok, PairTokenizer)
    train, val, test = split(pairs, c.val_fraction)
    source = str(c.path or c.name)
    for name, part in (("validation", val), ("training", train)):
        if not part:
            raise UserError(
                f"{source}: {len(pairs)} sources leave none for {name} at --data.val-fraction "
                f"{c.val_fraction}; use more pairs or another share"
            )
    # Also for the test split: a pair that is too long is reported now.
    buckets, val_buckets, _ = (
        make_buckets(part, tok, model, config.train.batch_size, source)
        for part in (train, val, test)
    )
    return PairData(train, val, test, buckets, val_buckets, tok, source, sha256)


def parse_cmudict(text: str, path: Path, stress: bool) -> Pairs:
    """Words and pronunciations of CMUdict. Without stress, phones lose their digit.

    Raises UserError for a word without phones.
    """
    pairs: Pairs = {}
    for number, line in enumerate(text.split("\n"), 1):
        word, *phones = line.partition("#")[0].split() or [""]
        if not word or word.startswith(";;;"):  # a comment in older editions
            continue
        if not phones or not all(phone.rstrip("012") for phone in phones):
            raise UserError(f"--data.path {path}, line {number}: {word!r} has no pronunciation")
        word = re.sub(r"\(\d+\)$", "", word)  # the number of a pronunciation
        target = " ".join(phones if stress else (phone.rstrip("012") for phone in phones))
        targets = pairs.setdefault(word, [])
        if target not in targets:
            targets.append(target)
    return pairs


def parse_tsv(text: str, path: Path) -> Pairs:
    """Lines of source, TAB, target. Skips empty lines. Raises UserError for any other line."""
    pairs: Pairs = {}
    for number, line in enumerate(text.split("\n"), 1):  # splitlines also splits at U+2028
        if not line.strip():
            continue
        source, *targets = (field.strip() for field in line.split("\t"))
        if len(targets) != 1 or not source or not targets[0]:
            raise UserError(
                f"--data.path {path}, line {number}: {line[:40]!r} is not source, TAB, target"
            )
        if targets[0] not in pairs.setdefault(source, []):
            pairs[source].append(targets[0])
    if not pairs:
        raise UserError(f"--data.path {path} has no pairs; a line is source, TAB, target")
    return pairs


def split(pairs: Pairs, fraction: float) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test pairs; the last two get `fraction` of the sources each.

    Ordered by the hash of the source, so most sources stay in their split when others are added.
    """
    order = sorted(pairs, key=lambda source: hashlib.sha256(source.encode()).digest())
    n = round(fraction * len(order))
    test, val, train = order[:n], order[n : 2 * n], order[2 * n :]
    train, val, test = ({source: pairs[source] for source in part} for part in (train, val, test))
    return train, val, test


def _tokenizer(config: Config, pairs: Pairs) -> PairTokenizer:
    c = config.data
    assert isinstance(c, PairsDataConfig)

    def trained_on(kind: str, texts: Iterable[str]) -> TextTokenizer:
        between = "" if kind == "char" else "\n"  # no text has a line break; it needs no token
        return tokenizer.train(kind, between.join(texts), c.vocab_size)

    targets = [target for several in pairs.values() for target in several]
    assert isinstance(config.model, EncoderDecoderConfig)
    if config.model.share_embeddings:
        shared = trained_on(c.tokenizer, [*pairs, *targets])
        return PairTokenizer(shared, shared)
    return PairTokenizer(trained_on(c.source_tokenizer, pairs), trained_on(c.tokenizer, targets))


def make_buckets(
    pairs: Pairs, tok: PairTokenizer, model: EncoderDecoderConfig, batch_size: int, name: str
) -> tuple[Bucket, ...]:
    """All pairs, ordered by length, in buckets of batch_size or more (fewer if there is only one).

    Raises UserError for a pair that is longer than the model allows.
    """
    sources, targets = [], []
    for source, several in pairs.items():
        source_ids = tok.source.encode(source)
        for target in several:
            target_ids = tok.target.encode(target)
            for side, ids, limit, flag in (
                ("source", source_ids, model.source_block_size, "source-block-size"),
                ("target", target_ids, model.block_size - 1, "block-size"),
            ):
                if len(ids) > limit:
                    raise UserError(
                        f"{name}: the {side} of {source[:40]!r} has {len(ids)} tokens, more than "
                        f"--model.{flag} {getattr(model, flag.replace('-', '_'))} holds (a target "
                        "needs one more for its end); raise that, or leave the pair out"
                    )
            sources.append(source_ids)
            targets.append(np.concatenate([[tok.boundary], target_ids, [tok.boundary]]))
    source_length = np.array([len(ids) for ids in sources])
    target_length = np.array([len(ids) for ids in targets]) - 1
    order = np.argsort(np.maximum(source_length, target_length), kind="stable")
    ends = [round(share * len(order)) for share in BUCKET_ENDS]
    ends = [end for end in ends if batch_size <= end <= len(order) - batch_size]

    def padded(sequences: list[np.ndarray]) -> np.ndarray:
        ids_NT = np.zeros((len(sequences), max(map(len, sequences))), np.int32)
        for row, ids in zip(ids_NT, sequences, strict=True):
            row[: len(ids)] = ids
        return ids_NT

    return tuple(
        Bucket(
            padded([sources[i] for i in members]),
            source_length[members],
            padded([targets[i] for i in members]),
            target_length[members],
        )
        for members in np.split(order, ends)
        if members.size
    )
