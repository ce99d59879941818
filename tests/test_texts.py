"""Batches are pure functions of their arguments; token files equal encoding all at once."""

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conftest import Refused, check_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.commands import prepare
from gptjax.config import BigramConfig, Config, TextDataConfig, TrainConfig
from gptjax.data import corpus, text_files, texts, tokenizer
from gptjax.data import dataset as data
from gptjax.data.batches import TRAINING, Batch
from gptjax.data.texts import TextData
from gptjax.errors import UserError
from gptjax.runs import resuming

Kind = Literal["char", "word", "byte", "gpt2", "bpe"]
Windows = Literal["random", "epochs"]

# Blank lines, indents and characters of one to four bytes, so that any place to cut is a trap.
TEXT = "First Citizen:\n\n  Speak, naïve friend.\n\n\n\tÜber 12 €? \U0001f600\n   \nAll:\n" * 5


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


# --- batches


def test_a_random_batch_is_a_pure_function_of_its_arguments() -> None:
    tokens = np.arange(1000, dtype=np.uint16)

    def starts(seed: int, stream: int, step: int) -> tuple[int, ...]:
        np.random.seed(len(seen))  # noqa: NPY002 - the global generator must not matter
        return tuple(texts.random_batch(tokens, 8, 4, seed, stream, step)["tokens"][:, 0].tolist())

    seen: dict[tuple[int, int, int], tuple[int, ...]] = {}
    arguments = [(s, stream, step) for s in (0, 1) for stream in (0, 1) for step in (0, 1, 2**20)]
    for key in arguments:
        seen[key] = starts(*key)
    assert {key: starts(*key) for key in reversed(arguments)} == seen
    assert len(set(seen.values())) == len(arguments)


def test_targets_are_the_next_tokens() -> None:
    # Ids above 2**15, and the last that 16 bits hold, must not wrap round.
    tokens = np.arange(1 << 16, dtype=np.uint16)
    batch = texts.random_batch(tokens, block_size=8, batch_size=5, seed=1, stream=0, step=0)
    assert {name: leaf.shape for name, leaf in batch.items()} == dict.fromkeys(batch, (5, 8))
    assert batch["tokens"].dtype == batch["targets"].dtype == np.int32
    assert batch["tokens"].max() > 1 << 15
    np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
    np.testing.assert_array_equal(np.diff(batch["tokens"]), 1)
    np.testing.assert_array_equal(batch["loss_weights"], np.float32(1))


def test_random_batches_reach_both_ends_of_the_text() -> None:
    tokens = np.arange(10, dtype=np.uint16)
    batch = texts.random_batch(tokens, 8, 64, seed=1, stream=0, step=0)
    assert set(batch["tokens"][:, 0]) == {0, 1}
    assert batch["targets"].max() == 9
    shortest = texts.random_batch(tokens[:9], 8, 3, seed=1, stream=0, step=0)
    np.testing.assert_array_equal(shortest["tokens"], np.tile(np.arange(8), (3, 1)))


@pytest.mark.parametrize("windows", ["random", "epochs"])
def test_training_batches_stack_the_steps_and_pad_with_weight_zero(windows: Windows) -> None:
    tokens = np.arange(500, dtype=np.uint16)
    config = Config(
        BigramConfig(8), TextDataConfig(windows=windows), train=TrainConfig(batch_size=4), seed=7
    )
    stacked = data.training_batches(text_data(tokens), config, range(10, 13), steps_per_dispatch=5)
    for i, step in enumerate(range(10, 13)):
        if windows == "random":
            alone = texts.random_batch(tokens, 8, 4, 7, TRAINING, step)
        else:
            alone = texts.epoch_batch(tokens, 8, 4, 7, step)
        for name, leaf in alone.items():
            np.testing.assert_array_equal(stacked[name][i], leaf)
    assert stacked["loss_weights"].shape == (5, 4, 8)
    assert not stacked["loss_weights"][3:].any()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 60), st.integers(0, 2**32))
def test_an_epoch_takes_every_window_once(
    block_size: int, batch_size: int, n_more: int, seed: int
) -> None:
    tokens = np.arange(block_size + n_more, dtype=np.uint16)
    n_windows = max(1, len(tokens) // block_size - 1)
    sizes = block_size, batch_size
    batches = [texts.epoch_batch(tokens, *sizes, seed, step) for step in range(2 * n_windows)]
    for batch in batches:
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
    starts = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    for epoch in starts.reshape(2 * batch_size, n_windows):
        np.testing.assert_array_equal(np.diff(np.sort(epoch)), block_size)
        assert epoch.max() + block_size < len(tokens)


def test_every_epoch_starts_at_another_place_in_another_order() -> None:
    tokens = np.arange(103, dtype=np.uint16)
    batches = [texts.epoch_batch(tokens, 8, 3, seed=5, step=step) for step in range(22)]
    epochs = np.concatenate([batch["tokens"][:, 0] for batch in batches]).reshape(6, 11)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({epoch.min() for epoch in epochs}) > 1
    # So over many epochs every token except the first is a target, even in the shortest text.
    for n_tokens in (9, 15, 16, 17, 24, 31):
        steps = [texts.epoch_batch(np.arange(n_tokens), 8, 5, seed=1, step=s) for s in range(60)]
        assert {target for s in steps for target in s["targets"].flat} == set(range(1, n_tokens))


@pytest.mark.parametrize("windows", ["random", "epochs"])
def test_a_part_of_a_batch_is_what_it_is_of_the_whole(windows: Windows) -> None:
    train = TrainConfig(batch_size=5, eval_batches=3)
    config = Config(BigramConfig(8), data=TextDataConfig(windows=windows), train=train)
    check_rows(text_data(np.arange(503, dtype=np.uint16)), config)


def test_the_sampled_validation_is_the_same_every_time() -> None:
    text = text_data(np.arange(500, dtype=np.uint16))
    train = TrainConfig(batch_size=4, eval_batches=3)
    config = Config(BigramConfig(8), train=train, seed=7)
    batches, again = (list(text.sampled_validation(config, 4)) for _ in range(2))
    for batch, other in zip(batches, again, strict=True):
        for name, leaf in batch.items():
            np.testing.assert_array_equal(leaf, other[name])
    assert joined(batches, "loss_weights").sum() == 3 * 4 * 8
    whole = {batch["tokens"].shape for batch in text.validation(config, 4)}
    assert {batch["tokens"].shape for batch in batches} == whole  # one program for both
    halves = list(text.sampled_validation(config, 2))  # micro-batches
    for name in batches[0]:
        rows, half_rows = (joined(groups, name) for groups in (batches, halves))
        np.testing.assert_array_equal(rows[: 3 * 4 * 8], half_rows[: 3 * 4 * 8])
    training = texts.random_batch(text.val, 8, 4, 7, TRAINING, 0)
    assert not np.array_equal(batches[0]["tokens"][0], training["tokens"])


def text_data(tokens: np.ndarray) -> TextData:
    """These tokens as both splits."""
    return TextData(tokens, tokens, tokenizer.ByteTokenizer(), "a test", "")


def joined(groups: Iterable[Batch], name: str) -> np.ndarray:
    """One leaf of all groups, flat."""
    return np.concatenate([group[name].ravel() for group in groups])


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(2, 200))
def test_the_whole_split_counts_every_token_but_the_first_once(
    block_size: int, batch_size: int, length: int
) -> None:
    tokens = np.arange(length, dtype=np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "EVALUATION_TOKENS", 70)  # so that most lengths need several groups
        groups = list(texts.whole_split(tokens, block_size, batch_size))
    weights = joined(groups, "loss_weights")
    assert set(weights) <= {0, 1}
    targets = joined(groups, "targets")[weights == 1]
    assert sorted(targets.tolist()) == list(range(1, length))
    np.testing.assert_array_equal(joined(groups, "tokens")[weights == 1], targets - 1)
    # One shape, so one executable; and no group is all padding.
    (shape,) = {group["tokens"].shape for group in groups}
    assert shape[1:] == (batch_size, block_size)
    assert all(group["loss_weights"].any() for group in groups)


# --- text files


def test_load_splits_at_the_end_and_hashes_the_bytes(text_file: Path) -> None:
    loaded = texts.load(TextDataConfig(path=text_file, val_fraction=0.25), block_size=8)
    n_train = int(len(TEXT) * 0.75)
    assert loaded.tokenizer.decode(loaded.train) == TEXT[:n_train]
    assert loaded.tokenizer.decode(loaded.val) == TEXT[n_train:]
    assert loaded.train.dtype == loaded.val.dtype == np.uint16
    assert loaded.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert loaded.source == str(text_file)


@pytest.mark.parametrize(
    ("val_fraction", "block_size", "says"),
    [
        (0.01, 8, "the validation split has 4 tokens, fewer than --model.block-size 8"),
        (0.99, 8, "the training split has 4 tokens, fewer"),
        (0.5, 200, "split has 200 tokens, fewer"),
        (0.5, 199, ""),
    ],
)
def test_a_split_too_short_for_a_window_is_refused(
    tmp_path: Path, val_fraction: float, block_size: int, says: str
) -> None:
    (tmp_path / "text.txt").write_text("abcde" * 80)
    config = TextDataConfig(path=tmp_path / "text.txt", val_fraction=val_fraction)
    if not says:
        assert len(texts.load(config, block_size).val) == block_size + 1
        return
    with pytest.raises(UserError, match=says):
        texts.load(config, block_size)


# --- token files


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["char", "word", "byte", "bpe"]),
    st.integers(1, 20),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3),
)
def test_prepare_equals_encoding_all_at_once(kind: Kind, piece: int, more: list[str]) -> None:
    """Pieces of a few bytes cut through characters, words and blank lines."""
    # Each file ends in a line break, so no word goes on in the next file.
    parts = [TEXT, *(text.lstrip("\ufeff") + "\n" for text in more), "\n \n" + TEXT[:40]]
    whole = "".join(parts)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_BYTES", piece)
        files = [Path(folder) / f"{i}.txt" for i in range(len(parts))]
        for path, text in zip(files, parts, strict=True):
            path.write_bytes(text.encode())
        out = Path(folder) / "out"
        text_files.prepare(files, out, kind, vocab_size=300, val_fraction=0.25)
        tok = tokenizer.train(kind, whole, 300)
        prepared = texts.load(TextDataConfig(path=out), block_size=8)
        assert prepared.tokenizer.to_dict() == tok.to_dict()
        # Files are encoded one by one: no token reaches from one file into the next.
        ids = np.concatenate([tok.encode(text) for text in parts])
        np.testing.assert_array_equal(np.concatenate([prepared.train, prepared.val]), ids)
        assert len(prepared.train) == int(len(ids) * 0.75)
        assert prepared.sha256 == hashlib.sha256(whole.encode()).hexdigest()
        names = {"train.bin", "val.bin", "tokenizer.json", "prepared.json"}
        assert {path.name for path in out.iterdir()} == names


# The split falls inside a word, a merge, and a character of several bytes.
SPLIT_TEXT = "the cat is near the water, naïve € \U0001f600\U0001f600\n" * 40


@pytest.mark.parametrize("kind", ["char", "word", "byte", "bpe"])
@settings(deadline=None, max_examples=30)
@given(val_fraction=st.floats(0.1, 0.9))
def test_the_split_is_between_tokens(kind: Kind, val_fraction: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(SPLIT_TEXT, encoding="utf-8", newline="")
        config = TextDataConfig(path, kind, vocab_size=300, val_fraction=val_fraction)
        loaded = texts.load(config, block_size=4)
    tok = tokenizer.train(kind, SPLIT_TEXT, 300)
    whole = tok.encode(SPLIT_TEXT)
    np.testing.assert_array_equal(np.concatenate([loaded.train, loaded.val]), whole)
    cut = int(len(SPLIT_TEXT) * (1 - val_fraction))
    if kind in ("char", "byte"):  # committed losses depend on this split
        assert tok.decode(loaded.train) == SPLIT_TEXT[:cut]
        assert tok.decode(loaded.val) == SPLIT_TEXT[cut:]
    else:
        assert len(loaded.train) == int(len(whole) * (1 - val_fraction))


@pytest.mark.parametrize("kind", ["word", "bpe", "char"])
def test_a_run_whose_text_was_split_inside_a_token_is_refused_clearly(
    kind: Kind, tmp_path: Path, text_file: Path
) -> None:
    loaded = texts.load(TextDataConfig(text_file, kind, vocab_size=300), block_size=4)
    facts = {"source": "text", "sha256": loaded.sha256, **loaded.sizes}
    facts["train_tokens"] -= 1
    (tmp_path / "environment.json").write_text(json.dumps({"data": facts}))
    n = len(loaded.train)
    with pytest.raises(UserError, match=f"train_tokens {n - 1:,} -> {n:,}") as caught:
        resuming.check_same_data(tmp_path, loaded)
    assert ("split a text inside a token, this one does not" in str(caught.value)) == (
        kind != "char"
    )


@pytest.mark.parametrize("place", ["/dev/zero", "FOLDER", "a\0b"])
def test_prepare_reads_files_only(place: str, tmp_path: Path) -> None:
    path = tmp_path if place == "FOLDER" else Path(place)
    with pytest.raises(UserError, match="; name a UTF-8 text file") as caught:
        text_files.prepare((path,), tmp_path / "out", "byte")
    assert str(caught.value).startswith(str(path))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_text_is_named_before_gpt2_fetches_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(pytest.importorskip("tiktoken"), "get_encoding", unreachable)
    for content, words in ((b"", "is empty"), (b"\x7fELF", "is a program"), (b"a", "its table")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(UserError, match=words):
            text_files.prepare((tmp_path / "a.txt",), tmp_path / "out", "gpt2")


def test_token_files_are_memory_mapped_and_batched_like_text(
    tmp_path: Path, text_file: Path
) -> None:
    text_files.prepare((text_file,), tmp_path / "out", "char", val_fraction=0.2)
    mapped = texts.load(TextDataConfig(path=tmp_path / "out"), block_size=8)
    in_memory = texts.load(TextDataConfig(path=text_file, val_fraction=0.2), block_size=8)
    assert isinstance(mapped.train, np.memmap)
    assert isinstance(mapped.val, np.memmap)
    assert not mapped.train.flags.writeable
    one = texts.random_batch(mapped.train, 8, 4, seed=1, stream=0, step=3)
    other = texts.random_batch(in_memory.train, 8, 4, seed=1, stream=0, step=3)
    np.testing.assert_array_equal(one["tokens"], other["tokens"])
    assert type(one["tokens"]) is np.ndarray


def test_a_byte_order_mark_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE_BYTES", 2)
    files, marked = (tmp_path / "a.txt", tmp_path / "b.txt"), b"\xef\xbb\xbf" + TEXT.encode()
    for path in files:
        path.write_bytes(marked)
        assert text_files.read_text(path) == (TEXT, hashlib.sha256(marked).hexdigest())
    text_files.prepare(files, tmp_path / "out", "char")
    prepared = texts.load(TextDataConfig(path=tmp_path / "out"), block_size=8)
    assert prepared.tokenizer.decode([*prepared.train, *prepared.val]) == TEXT * 2


@pytest.mark.parametrize("kind", ["char", "byte"])  # found before, and in the middle of, writing
@pytest.mark.parametrize(
    ("raw", "offset", "byte"),
    [
        (b"abc\xff\n", 3, "ff"),
        ("aé€".encode() + b"\xc3(\n", 6, "c3"),  # a character that does not go on
        ("a\n€€".encode() + b"\xe2\x82", 8, "e2"),  # ... and one that the end cuts off
        (b"\x80", 0, "80"),
    ],
)
def test_the_offset_of_a_byte_that_is_not_utf8_is_exact(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    raw: bytes,
    offset: int,
    byte: str,
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("€ fine\n", encoding="utf-8")
    bad.write_bytes(raw)
    message = f"bad.txt is not UTF-8: byte 0x{byte} at offset {offset};"
    for piece in (1, 2, 3, 4, 5, 1000):
        monkeypatch.setattr(corpus, "PIECE_BYTES", piece)
        with pytest.raises(UserError, match=message):
            text_files.prepare((good, bad), tmp_path / "out", kind)
        assert {path.name for path in tmp_path.iterdir()} == {"good.txt", "bad.txt"}


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_an_empty_or_missing_file_leaves_nothing_behind(tmp_path: Path, kind: Kind) -> None:
    good = tmp_path / "good.txt"
    good.write_text(TEXT, encoding="utf-8")
    empty = tmp_path / "empty.txt"
    empty.touch()
    for path, words in ((empty, "is empty"), (tmp_path / "none.txt", "No such file or directory")):
        with pytest.raises(UserError, match=f"{path.name}.*{words}; name a UTF-8 text file"):
            text_files.prepare((good, path), tmp_path / "out", kind)
        assert {path.name for path in tmp_path.iterdir()} == {"good.txt", "empty.txt"}


def test_prepare_into_a_place_that_is_taken_or_cannot_be_written(
    tmp_path: Path, text_file: Path
) -> None:
    (tmp_path / "precious").mkdir()
    for out, says in (
        (tmp_path / "precious", "exists; name a new folder"),
        # Below a file: not even root can make that folder.
        (text_file / "out", ".*Not a directory; name a writable folder"),
    ):
        with pytest.raises(UserError, match=f"--out {out}:? ?{says}"):
            text_files.prepare((text_file,), out, "byte")
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "text.txt"}
    assert list((tmp_path / "precious").iterdir()) == []


def test_prepare_on_the_command_line(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare.main(["--out", str(out), "--tokenizer", "byte", str(text_file)])
    n = len(TEXT.encode())
    n_train = int(n * 0.9)
    printed = capsys.readouterr().out
    assert f"{n_train:,} training and {n - n_train:,} validation tokens" in printed
    assert f"--data.path {out}" in printed
    assert json.loads((out / "prepared.json").read_text())["tokens"] == n


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--out"),
        (["--out", "OUT"], "at least one text file"),
        (["--out", "OUT", "TEXT", "--val-fraction", "1"], "--val-fraction is 1.0"),
        (["--out", "OUT", "TEXT", "--tokeniser", "byte"], "--tokenizer"),
        (["--out", "OUT", "TEXT", "--vocab-size", "9"], "--vocab-size 9 is for --tokenizer bpe; "),
        (
            ["--out", "OUT", "TEXT", "--field", "story"],
            "--field story is for tables (.jsonl, .ndjson, .csv, .tsv, .parquet) and data sets; ",
        ),
        (["TEXT"], "--out"),
    ],
)
def test_a_bad_command_line_is_one_line(
    refused: Refused, tmp_path: Path, text_file: Path, argv: list[str], words: str
) -> None:
    places = {"OUT": tmp_path / "out", "TEXT": text_file}
    assert words in refused(prepare.main, *(places.get(argument, argument) for argument in argv))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prepared.json", None),
        ("prepared.json", b"{"),
        ("prepared.json", b"[]"),
        ("prepared.json", b'{"dtype": "uint9", "sha256": ""}'),
        ("tokenizer.json", None),
        ("train.bin", None),
        ("train.bin", b"odd"),  # not a whole number of 16-bit tokens
        ("val.bin", b""),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    tmp_path: Path, text_file: Path, name: str, content: bytes | None
) -> None:
    out = tmp_path / "out"
    text_files.prepare((text_file,), out, "char")
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)
    with pytest.raises(UserError, match=r"is not a folder of token files .*gptjax prepare"):
        texts.load(TextDataConfig(path=out), block_size=8)
