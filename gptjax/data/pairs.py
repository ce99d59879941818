"""Pairs of sequences as padded batches, each a pure function of (seed, step).

A pair is a source and a target, in a file one a line with a TAB between them, or a word and a
pronunciation in CMUdict. A source may have several targets, all of them right: they stay in one
split. Pairs of like length share a batch, so that little of it is padding, which weighs nothing.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.config import Config
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig
from gptjax.data import datasets, tokenizer
from gptjax.data.texts import ALL, TRAINING, Batch, read_text
from gptjax.data.tokenizer import PairTokenizer, TextTokenizer, Tokenizer
from gptjax.errors import UserError

Pairs = dict[str, list[str]]
"""Sources and the targets of each."""

# Where training pairs, ordered by length, are cut into buckets. Every bucket is a shape of batch,
# and every shape compiles a train step.
BUCKET_ENDS = (0.6, 0.85, 0.97)


@dataclass(frozen=True)
class Bucket:
    """Pairs of like length, padded to the longest: ids (N, S) and (N, T + 1), int32.

    A row of targets begins and ends with the boundary token; lengths count the second one.
    """

    source_NS: np.ndarray
    source_length_N: np.ndarray
    target_NT: np.ndarray
    target_length_N: np.ndarray

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of these rows; a row of -1 is padding."""
        n_source, n_target = self.source_NS.shape[1], self.target_NT.shape[1] - 1
        weighs = np.arange(n_target) < self.target_length_N[rows, None]
        return {
            "source": self.source_NS[rows],
            "source_mask": np.arange(n_source) < self.source_length_N[rows, None],
            "tokens": self.target_NT[rows, :-1],
            "targets": self.target_NT[rows, 1:],
            "loss_weights": (weighs & (rows >= 0)[:, None]).astype(np.float32),
        }

    def in_order(self, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """Every pair once, in batches of one size, and of them these rows."""
        n_pairs = len(self.source_NS)
        for first in range(0, n_pairs, batch_size):
            pairs = np.arange(first, first + batch_size)[rows]
            yield self.batch(np.where(pairs < n_pairs, pairs, -1))


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
    """Where it came from, for people."""
    sha256: str
    """Of the file's bytes: a run refuses to continue on other pairs."""

    one_shape = False
    """Batches of different buckets cannot share a dispatch."""

    @property
    def sample_flags(self) -> str:
        """What sample.py wants besides the run."""
        return f' --source "{next(iter(self.val))}"'

    @property
    def sizes(self) -> dict[str, int]:
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {
            f"{name}_pairs": sum(len(targets) for targets in pairs.values())
            for name, pairs in splits.items()
        }

    def tokens_per_sequence(self, config: Config) -> float:
        """Mean number of source and target tokens of a pair, the boundary among them."""
        lengths = [b.source_length_N + b.target_length_N for b in self.buckets]
        return float(np.concatenate(lengths).mean())

    def batch(self, config: Config, step: int, rows: slice = ALL) -> Batch:
        """These rows of the training batch of a step, leaves (B, S) and (B, T).

        An epoch takes every pair at least once, in an order of its own; the last batch of a
        bucket is filled up with pairs of its first.
        """
        bucket, pairs = self._plan(config, step)
        return self.buckets[bucket].batch(pairs[rows])

    def _plan(self, config: Config, step: int) -> tuple[int, np.ndarray]:
        """The bucket of a step's batch, and which of its pairs."""
        batch_size = config.train.batch_size
        sizes = tuple(len(bucket.source_NS) for bucket in self.buckets)
        epoch, number = divmod(step, sum(-(-size // batch_size) for size in sizes))
        return epoch_batches(sizes, batch_size, config.seed, epoch)[number]

    def validation(self, config: Config, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """These rows of the batches of the validation split, leaves (1, B, S) and (1, B, T)."""
        for bucket in self.val_buckets:
            for batch in bucket.in_order(batch_size, rows):
                yield {name: leaf[None] for name, leaf in batch.items()}


@functools.lru_cache(maxsize=2)
def epoch_batches(
    sizes: tuple[int, ...], batch_size: int, seed: int, epoch: int
) -> list[tuple[int, np.ndarray]]:
    """(bucket, rows) of every batch of an epoch, in their order."""
    rng = np.random.default_rng((seed, TRAINING, epoch))
    batches = []
    for bucket, size in enumerate(sizes):
        n_batches = -(-size // batch_size)
        rows = np.resize(rng.permutation(size), (n_batches, batch_size))
        batches += [(bucket, row) for row in rows]
    return [batches[i] for i in rng.permutation(len(batches))]


def load(config: Config, tok: Tokenizer | None = None) -> PairData:
    """Reads, or fetches, splits and tokenizes the pairs that a configuration names.

    config.data.val_fraction of the sources are held out for validation and as many for test.
    Which ones depends on the sources alone, not on their order. The tokenizer is made of all pairs
    unless it is given. Raises UserError for a file that is missing, empty or not of pairs, a split
    without pairs, and a pair that is too long.
    """
    model, c = config.model, config.data
    assert isinstance(model, EncoderDecoderConfig)
    assert isinstance(c, PairsDataConfig)
    path = c.path or datasets.fetch("cmudict")
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
    # Those of the test split to learn now whether one is too long.
    buckets, val_buckets, _ = (
        make_buckets(part, tok, model, config.train.batch_size, source)
        for part in (train, val, test)
    )
    return PairData(train, val, test, buckets, val_buckets, tok, source, sha256)


def parse_cmudict(text: str, path: Path, stress: bool) -> Pairs:
    """Words and pronunciations of CMUdict; without stress, phones lose their digit.

    Raises UserError for a word without phones.
    """
    pairs: Pairs = {}
    for number, line in enumerate(text.splitlines(), 1):
        word, *phones = line.partition("#")[0].split() or [""]
        if not word or word.startswith(";;;"):  # an older edition's way to comment
            continue
        if not phones or not all(phone.rstrip("012") for phone in phones):
            raise UserError(f"--data.path {path}, line {number}: {word!r} has no pronunciation")
        word = re.sub(r"\(\d+\)$", "", word)  # the number of a variant
        target = " ".join(phones if stress else (phone.rstrip("012") for phone in phones))
        targets = pairs.setdefault(word, [])
        if target not in targets:
            targets.append(target)
    return pairs


def parse_tsv(text: str, path: Path) -> Pairs:
    """Lines of source, TAB, target. Skips empty ones; raises UserError for any other."""
    pairs: Pairs = {}
    for number, line in enumerate(text.split("\n"), 1):  # U+2028 and its like end no line
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
    """Training, validation and test: `fraction` of the sources each for the last two.

    In the order of the sources' hashes, so that a source stays where it is when others come.
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
        between = "" if kind == "char" else "\n"  # the line break is no character of theirs
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
    """All pairs, ordered by length, in buckets of at least batch_size where there are as many.

    Raises UserError for a pair that does not fit the model.
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

    def padded(rows: list[np.ndarray], of: np.ndarray) -> np.ndarray:
        ids = np.zeros((len(of), max(len(rows[i]) for i in of)), np.int32)
        for to, i in enumerate(of):
            ids[to, : len(rows[i])] = rows[i]
        return ids

    return tuple(
        Bucket(padded(sources, of), source_length[of], padded(targets, of), target_length[of])
        for of in np.split(order, ends)
        if of.size
    )
