"""Every pair is read, is in one split, and is taken as often as it should be."""

import dataclasses
import hashlib
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import check_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax import config_checks
from gptjax.config import BigramConfig, Config, GPTConfig, ModelConfig, TrainConfig
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig, SpeechConfig
from gptjax.config_json import DATA_OF_MODEL
from gptjax.data import dataset as data
from gptjax.data import downloads, pairs
from gptjax.data.batches import Batch
from gptjax.data.pairs import Bucket, PairData, Pairs
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer, WordTokenizer
from gptjax.errors import UserError

MODEL = EncoderDecoderConfig(
    n_layer=1, n_head=2, n_embd=16, block_size=12, n_encoder_layer=1, source_block_size=16
)
Kind = Literal["char", "word", "byte"]

CMUDICT = """\
abandon AH0 B AE1 N D AH0 N
aalborg AO1 L B AO0 R G # place, danish
aalborg(2) AA1 L B AO0 R G
abstract AE0 B S T R AE1 K T
abstract(2) AE1 B S T R AE2 K T
abstract(10) AH0 B S T R AE1 K T
a(b AH0
"""


def random_pairs(n: int) -> Pairs:
    """Sources of 1 to 15 letters, most of them short, whose targets are about two thirds as long.

    Every third has a second target.
    """
    rng = random.Random(0)
    made: Pairs = {}
    while len(made) < n:
        source = "".join(rng.choices("abcdef", k=min(1 + int(rng.expovariate(0.3)), 15)))
        n_targets = 2 if len(made) % 3 == 0 else 1
        length = 1 + len(source) * 2 // 3 - rng.randrange(2)
        targets = {" ".join(rng.choices("XYZ", k=max(1, length))) for _ in range(n_targets)}
        if source not in made and len(targets) == n_targets:
            made[source] = sorted(targets)
    return made


def as_tsv(of: Pairs) -> str:
    return "".join(f"{source}\t{target}\n" for source in of for target in of[source])


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    """500 sources, of which a tenth is held out twice."""
    path = tmp_path / "pairs.tsv"
    path.write_text(as_tsv(random_pairs(500)))
    return path


def make_config(path: Path | None = None, batch_size: int = 16, seed: int = 7) -> Config:
    data_config = PairsDataConfig(path=path, name="cmudict", tokenizer="word")
    return Config(MODEL, data_config, train=TrainConfig(batch_size=batch_size), seed=seed)


@pytest.fixture
def config(tsv: Path) -> Config:
    return make_config(tsv)


@pytest.fixture
def dataset(config: Config) -> PairData:
    return pairs.load(config)


def rows_of(batch: Batch, tok: PairTokenizer) -> list[tuple[str, str]]:
    """The pairs of the rows of a batch that weigh something."""
    rows = []
    for source, mask, target, weights in zip(
        *(batch[name] for name in ("source", "source_mask", "targets", "loss_weights")), strict=True
    ):
        if weights.any():
            ids = target[weights > 0]
            assert ids[-1] == tok.boundary
            rows.append((tok.source.decode(source[mask]), tok.target.decode(ids[:-1])))
    return rows


def listed(of: Pairs) -> Counter[tuple[str, str]]:
    return Counter((source, target) for source in of for target in of[source])


# --- reading


WITH_STRESS = {
    "abandon": ["AH0 B AE1 N D AH0 N"],
    "aalborg": ["AO1 L B AO0 R G", "AA1 L B AO0 R G"],
    "abstract": ["AE0 B S T R AE1 K T", "AE1 B S T R AE2 K T", "AH0 B S T R AE1 K T"],
    "a(b": ["AH0"],
}
WITHOUT_STRESS = {  # variants that differ in stress alone are one
    "abandon": ["AH B AE N D AH N"],
    "aalborg": ["AO L B AO R G", "AA L B AO R G"],
    "abstract": ["AE B S T R AE K T", "AH B S T R AE K T"],
    "a(b": ["AH"],
}


@pytest.mark.parametrize(
    ("name", "expected"), [("cmudict_stress", WITH_STRESS), ("cmudict", WITHOUT_STRESS)]
)
def test_a_pronouncing_dictionary(tmp_path: Path, name: Any, expected: Pairs) -> None:
    path = tmp_path / "mine.dict"
    path.write_text(CMUDICT)
    data_config = PairsDataConfig(name=name, path=path, tokenizer="word", val_fraction=0.25)
    loaded = pairs.load(Config(MODEL, data_config, train=TrainConfig(batch_size=2)))
    assert loaded.train | loaded.val | loaded.test == expected
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [2, 1, 1]


@pytest.mark.parametrize("line", ["", "   ", "# a comment, alone", ";;; an old comment"])
def test_lines_of_a_dictionary_that_say_nothing_are_skipped(line: str) -> None:
    assert pairs.parse_cmudict(f"a AH0\n{line}\nb B IY1\n", Path("x.dict"), stress=False) == {
        "a": ["AH"],
        "b": ["B IY"],
    }


@pytest.mark.parametrize("line", ["nothing", "nothing 1", "nothing AH0 2 B"])
def test_a_word_without_a_pronunciation_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"mine\.dict, line 3: 'nothing' has no pronunciation"):
        pairs.parse_cmudict(f"a AH0\nb B IY1\n{line}\nc S IY1\n", Path("mine.dict"), False)


def test_lines_of_source_tab_target() -> None:
    text = "b\tX Y\n\n a b \t Y \n  \nb\tZ\r\nb\tX Y\nc c\tü\u2028é\n"
    assert pairs.parse_tsv(text, Path("x.tsv")) == {
        "b": ["X Y", "Z"],
        "a b": ["Y"],
        "c c": ["ü\u2028é"],
    }


@pytest.mark.parametrize("line", ["ab XY", "a\tb\tc", "a\t", "\tb", "a\t  ", "\t"])
def test_a_line_that_is_no_pair_is_refused_with_its_number(line: str) -> None:
    text = f"a\tX\n\nb\tY\n{line}\nc\tZ\n"
    if not line.strip():
        assert len(pairs.parse_tsv(text, Path("x.tsv"))) == 3  # as good as empty
        return
    with pytest.raises(UserError) as caught:
        pairs.parse_tsv(text, Path("x.tsv"))
    assert str(caught.value).startswith("--data.path x.tsv, line 4: ")
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize("text", ["\n", " \n\t\n"])
def test_a_file_without_pairs_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"x\.tsv has no pairs; a line is source, TAB, target"):
        pairs.parse_tsv(text, Path("x.tsv"))


# --- splitting


@settings(deadline=None)
@given(st.integers(0, 150), st.floats(0, 0.5))
def test_the_splits_share_no_source_and_have_their_sizes(n: int, fraction: float) -> None:
    all_pairs = random_pairs(n)
    splits = pairs.split(all_pairs, fraction)
    n_test = round(fraction * n)
    n_val = min(n_test, n - n_test)
    assert [len(part) for part in splits] == [n - n_test - n_val, n_val, n_test]
    # Every source once, and with every target that it has.
    assert sum(map(listed, splits), Counter()) == listed(all_pairs)
    assert len({source for part in splits for source in part}) == n


def test_the_split_does_not_depend_on_the_order_of_the_file() -> None:
    all_pairs = random_pairs(200)
    shuffled = list(all_pairs.items())
    random.Random(1).shuffle(shuffled)
    for ours, theirs in zip(
        pairs.split(all_pairs, 0.1), pairs.split(dict(shuffled), 0.1), strict=True
    ):
        assert list(ours.items()) == list(theirs.items())
    # Nor does it take the first or the last ones, or those of some length.
    _, val, test = pairs.split(all_pairs, 0.1)
    order = list(all_pairs)
    for part in (val, test):
        places = [order.index(source) for source in part]
        assert 60 < np.mean(places) < 140
        assert len({len(source) for source in part}) > 2


def test_sources_stay_where_they_are_when_others_are_added() -> None:
    """But at the edges: they keep their order, in which the splits are cut."""
    had = random_pairs(400)
    more = had | {f"new{i}": ["X"] for i in range(40)}
    before, after = pairs.split(had, 0.1), pairs.split(more, 0.1)
    old_order = [source for i in (2, 1, 0) for source in before[i]]
    new_order = [source for i in (2, 1, 0) for source in after[i]]
    assert [source for source in new_order if source in had] == old_order
    moved = sum(len(old.keys() - new.keys()) for old, new in zip(before, after, strict=True))
    assert moved < 12
    # The new ones go everywhere.
    assert [len(part.keys() - had.keys()) > 0 for part in after] == [True] * 3


# --- buckets


def tokenizer_of(of: Pairs) -> PairTokenizer:
    targets = [target for several in of.values() for target in several]
    return PairTokenizer(CharTokenizer.train("".join(of)), WordTokenizer.train("\n".join(targets)))


def pairs_in(bucket: Bucket, tok: PairTokenizer) -> Counter[tuple[str, str]]:
    return Counter(rows_of(bucket.batch(np.arange(len(bucket.source_NS))), tok))


@pytest.mark.parametrize("batch_size", [1, 16, 150, 1000])
def test_every_pair_is_in_one_bucket_with_no_more_padding_than_it_needs(batch_size: int) -> None:
    of = random_pairs(300)
    tok = tokenizer_of(of)
    buckets = pairs.make_buckets(of, tok, MODEL, batch_size, "mine")
    assert sum((pairs_in(bucket, tok) for bucket in buckets), Counter()) == listed(of)
    n_pairs = listed(of).total()
    assert n_pairs == 400
    assert len(buckets) == {1: 4, 16: 3, 150: 2, 1000: 1}[batch_size]
    longest = 0
    for bucket in buckets:
        assert len(bucket.source_NS) >= min(batch_size, n_pairs)
        assert bucket.source_NS.dtype == bucket.target_NT.dtype == np.int32
        # The longest source and the longest target touch the edge.
        assert bucket.source_NS.shape[1] == bucket.source_length_N.max()
        assert bucket.target_NT.shape[1] == bucket.target_length_N.max() + 1
        lengths = np.maximum(bucket.source_length_N, bucket.target_length_N)
        assert lengths.min() >= longest  # the buckets do not overlap
        longest = lengths.max()


def test_the_longest_pair_that_fits_and_one_more() -> None:
    """A target of block_size tokens has no room for its end."""
    fits = {"a" * 16: [" ".join("X" * 11)]}
    (bucket,) = pairs.make_buckets(fits, tokenizer_of(fits), MODEL, 1, "mine")
    assert bucket.batch(np.arange(1))["tokens"].shape == (1, 12)
    assert bucket.batch(np.arange(1))["loss_weights"].sum() == 12
    for of, which, flag in (
        ({"a" * 17: ["X"]}, "source of 'aaaaaaaaaaaaaaaaa' has 17", "--model.source-block-size 16"),
        ({"a": [" ".join("X" * 12)]}, "target of 'a' has 12", "--model.block-size 12"),
    ):
        with pytest.raises(UserError, match=rf"^mine: the {which} tokens, .* {flag} holds"):
            pairs.make_buckets(of, tokenizer_of(of), MODEL, 1, "mine")


# --- batches


def test_a_batch_is_a_pure_function_of_seed_and_step(tsv: Path) -> None:
    def batch(seed: int, step: int) -> bytes:
        np.random.seed(len(seen))  # noqa: NPY002 - the global generator must not matter
        random.seed(len(seen))
        made = pairs.load(make_config(tsv, seed=seed)).batch(make_config(tsv, seed=seed), step)
        return b"".join(made[name].tobytes() for name in sorted(made))

    seen: dict[tuple[int, int], bytes] = {}
    arguments = [(seed, step) for seed in (0, 1) for step in (0, 1, 2, 100, 2**20)]
    for key in arguments:
        seen[key] = batch(*key)
    assert {key: batch(*key) for key in reversed(arguments)} == seen
    assert len(set(seen.values())) == len(arguments)


def test_a_batch_says_what_follows_what_and_weighs_targets_and_their_end(
    dataset: PairData, config: Config
) -> None:
    tok = dataset.tokenizer
    longest = 0
    for step in range(40):
        batch = dataset.batch(config, step)
        tokens, targets, weights = batch["tokens"], batch["targets"], batch["loss_weights"]
        assert tokens.shape == targets.shape == weights.shape
        assert batch["source"].shape == batch["source_mask"].shape
        assert len(tokens) == len(batch["source"]) == 16
        assert tokens.dtype == targets.dtype == batch["source"].dtype == np.int32
        assert weights.dtype == np.float32
        assert batch["source_mask"].dtype == bool
        assert (tokens[:, 0] == tok.boundary).all()
        np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])
        # Weights are ones up to the boundary, the second one and the last of the row.
        n_B = (targets == tok.boundary).argmax(1) + 1
        np.testing.assert_array_equal(weights, np.arange(weights.shape[1]) < n_B[:, None])
        assert ((targets == tok.boundary).sum(1) == 1).all()
        # Masks are true at the source and before all padding.
        lengths = batch["source_mask"].sum(1)
        np.testing.assert_array_equal(
            batch["source_mask"], np.arange(batch["source"].shape[1]) < lengths[:, None]
        )
        longest = max(longest, weights.sum(1).max())
        for source, target in rows_of(batch, tok):
            assert target in dataset.train[source]
    assert longest == 12  # a target of eleven tokens was there, and its end


@pytest.mark.parametrize("batch_size", [1, 16, 30])
def test_an_epoch_takes_every_pair_and_the_next_orders_anew(tsv: Path, batch_size: int) -> None:
    config = make_config(tsv, batch_size)
    dataset = pairs.load(config)
    n_steps = sum(math.ceil(len(bucket.source_NS) / batch_size) for bucket in dataset.buckets)
    wanted = listed(dataset.train)
    assert dataset.sizes["train_pairs"] == wanted.total()
    epochs = []
    for epoch in range(3):
        batches = [dataset.batch(config, epoch * n_steps + step) for step in range(n_steps)]
        epochs.append([rows_of(batch, dataset.tokenizer) for batch in batches])
        taken = Counter(row for rows in epochs[-1] for row in rows)
        assert taken.keys() == wanted.keys()
        assert taken.total() == n_steps * batch_size
        # What fills up the last batch of a bucket is little, and none of it comes three times.
        assert taken.total() - wanted.total() < batch_size * len(dataset.buckets)
        assert max(taken.values()) <= 2
        # Long ones and short ones come mixed.
        widths = [batch["tokens"].shape[1] for batch in batches]
        assert len(set(widths)) == 1 or widths != sorted(widths)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # The batches differ, not only their order.
    composed = [{frozenset(rows) for rows in epoch} for epoch in epochs]
    assert batch_size == 1 or len(composed[0] & composed[1]) < n_steps / 4


def test_training_batches_add_the_axis_of_steps(dataset: PairData, config: Config) -> None:
    assert not dataset.one_shape  # so train.py takes one step at a time
    for step in range(5):
        steps = range(step, step + 1)
        stacked = data.training_batches(dataset, config, steps, steps_per_dispatch=1)
        alone = dataset.batch(config, step)
        assert stacked.keys() == alone.keys()
        for name, leaf in alone.items():
            np.testing.assert_array_equal(stacked[name], leaf[None])
            assert stacked[name].dtype == leaf.dtype


def test_a_part_of_a_batch_is_what_it_is_of_the_whole(dataset: PairData, config: Config) -> None:
    check_rows(dataset, config)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 64, 1000])
def test_validation_counts_every_pair_once(
    dataset: PairData, config: Config, batch_size: int
) -> None:
    counted: Counter[tuple[str, str]] = Counter()
    seen = set()
    for batch in dataset.validation(config, batch_size):
        assert {leaf.shape[:2] for leaf in batch.values()} == {(1, batch_size)}
        rows = rows_of({name: leaf[0] for name, leaf in batch.items()}, dataset.tokenizer)
        counted.update(rows)
        assert batch["loss_weights"].sum() == sum(len(target.split()) + 1 for _, target in rows)
        assert batch["source_mask"].any(-1).all()  # what is padding still attends to something
        seen.add(tuple(leaf.shape for leaf in batch.values()))
    assert counted == listed(dataset.val)
    assert counted.total() == dataset.sizes["val_pairs"] > 50
    assert len(seen) <= len(dataset.val_buckets)


def test_tokens_per_sequence_is_the_mean_of_what_is_no_padding(
    dataset: PairData, config: Config
) -> None:
    lengths = [len(source) + len(target.split()) + 1 for source, target in listed(dataset.train)]
    assert dataset.tokens_per_sequence(config) == pytest.approx(np.mean(lengths))


# --- loading


def test_a_file_is_split_and_hashed(tsv: Path, config: Config) -> None:
    loaded = data.load(config)
    assert isinstance(loaded, PairData)
    assert (loaded.train, loaded.val, loaded.test) == pairs.split(random_pairs(500), 0.1)
    assert loaded.source == str(tsv)
    assert loaded.sha256 == hashlib.sha256(tsv.read_bytes()).hexdigest()
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [400, 50, 50]
    for name, n_pairs in loaded.sizes.items():
        assert n_pairs == listed(getattr(loaded, name.removesuffix("_pairs"))).total()
    assert sum(loaded.sizes.values()) == 667


@pytest.mark.parametrize(
    ("source", "target", "n_source", "n_target"),
    [
        # Characters: a, b, " "; X, Y, " ". Words: a, ab, b, ba; X, XY, Y, YX.
        ("char", "char", 3, 3),
        ("char", "word", 3, 4),
        ("word", "char", 4, 3),
        ("word", "word", 4, 4),
        ("byte", "word", 256, 4),
    ],
)
def test_a_tokenizer_for_each_side(
    tmp_path: Path, source: Kind, target: Kind, n_source: int, n_target: int
) -> None:
    path = tmp_path / "pairs.tsv"
    of = {"a ab": ["X XY"], "ab b": ["XY Y"], "ba": ["YX"], "b": ["Y"], "a": ["X", "Y X"]}
    path.write_text(as_tsv(of))
    data_config = PairsDataConfig(path, target, val_fraction=0.2, source_tokenizer=source)
    tok = pairs.load(Config(MODEL, data_config, train=TrainConfig(batch_size=2))).tokenizer
    assert tok.source.vocab_size == tok.source_vocab_size == n_source
    assert tok.target.vocab_size == tok.boundary == tok.vocab_size - 1 == n_target
    for text, targets in of.items():
        assert tok.source.decode(tok.source.encode(text)) == text
        assert [tok.target.decode(tok.target.encode(t)) for t in targets] == targets


def test_shared_embeddings_share_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("abc\tcx\nb\ty\nca\tz\nd\tx\ne\tx\n")
    data_config = PairsDataConfig(path=path, val_fraction=0.2)
    for share in (True, False):
        model = dataclasses.replace(MODEL, share_embeddings=share)
        tok = pairs.load(Config(model, data_config, train=TrainConfig(batch_size=2))).tokenizer
        assert (tok.source is tok.target) == share
        sizes = (tok.source_vocab_size, tok.vocab_size)
        # a b c d e x y z and the boundary; or a b c d e, and c x y z and the boundary.
        assert sizes == ((9, 9) if share else (5, 5))
    assert tok.source.encode("abcde").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("model", [MODEL, GPTConfig(), BigramConfig(), SpeechConfig()])
def test_the_data_of_another_model_is_refused(model: ModelConfig) -> None:
    wanted = DATA_OF_MODEL[type(model)]
    config_checks.check_kinds(Config(model, wanted()))
    for other in {*DATA_OF_MODEL.values()} - {wanted}:
        with pytest.raises(UserError) as caught:
            config_checks.check_kinds(Config(model, other()))
        message = str(caught.value)
        assert message.startswith(f"a {type(model).__name__} needs data={wanted.__name__}(")
        assert message.endswith(f"this config has {other.__name__}")


@pytest.mark.parametrize(
    ("n", "fraction", "split"), [(4, 0.1, "validation"), (4, 0.5, "training"), (1, 0.1, "val")]
)
def test_a_split_without_pairs_is_refused(
    tmp_path: Path, n: int, fraction: float, split: str
) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\tX\n" for source in "abcd"[:n]))
    says = f"pairs.tsv: {n} sources leave none for {split}.* --data.val-fraction {fraction}"
    with pytest.raises(UserError, match=says):
        pairs.load(Config(MODEL, PairsDataConfig(path=path, val_fraction=fraction)))


@pytest.mark.parametrize("place", range(3))
def test_a_pair_that_is_too_long_is_refused_in_whatever_split_it_is(
    tmp_path: Path, place: int
) -> None:
    of = random_pairs(50)
    (source, *_) = pairs.split(of, 0.2)[place]
    path = tmp_path / "pairs.tsv"
    path.write_text(as_tsv(of | {source: [" ".join("X" * 12)]}))
    with pytest.raises(UserError, match=rf"the target of '{source}' has 12 tokens"):
        pairs.load(Config(MODEL, PairsDataConfig(path=path, tokenizer="word", val_fraction=0.2)))


@pytest.mark.slow
def test_the_cmu_pronouncing_dictionary() -> None:
    """The facts that others publish of it, where it can be had."""
    try:
        path = downloads.fetch("cmudict")
    except UserError as error:
        pytest.skip(str(error))
    text = path.read_text(encoding="utf-8")
    for stress, n_phones in ((False, 39), (True, 69)):
        of = pairs.parse_cmudict(text, path, stress)
        assert len(of) == 126_052
        phones = {phone for targets in of.values() for t in targets for phone in t.split()}
        assert len(phones) == n_phones
        assert all(len(set(targets)) == len(targets) for targets in of.values())
    assert of["abandon"] == ["AH0 B AE1 N D AH0 N"]
    assert of["aalborg"] == ["AO1 L B AO0 R G", "AA1 L B AO0 R G"]


def test_lines_of_a_dictionary_end_at_a_line_break_alone(tmp_path: Path) -> None:
    text = "a B\u2028 C\nd\x1ce F\r\n"
    found = pairs.parse_cmudict(text, tmp_path, stress=True)
    assert found == {"a": ["B C"], "d": ["e F"]}
