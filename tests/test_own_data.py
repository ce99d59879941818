"""Your own data, as people have it: every kind of file is read, or named with what to do."""

import csv
import gzip
import io
import json
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused

from gptjax.commands import prepare, sample_options
from gptjax.config import TextDataConfig
from gptjax.data import (
    audio,
    bpe,
    corpus,
    other_sound,
    recording_checks,
    rows,
    text_files,
    texts,
    tokenizer,
)
from gptjax.data.pairs import parse_tsv
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer
from gptjax.errors import UserError
from gptjax.page import contents
from gptjax.runs import metrics

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n"
ROWS = [{"id": 1, "title": "naïve", "story": "€ one"}, {"id": 2, "title": "b", "story": "two\n2"}]
STORIES = "€ one\n\ntwo\n2\n\n"


def read(path: Path, field: str = "") -> tuple[str, str]:
    """The text, and the description of it without the folder."""
    text, _, description = text_files.read_corpus(path, field)
    return text, description.replace(f"{path.parent}/", "")


def json_lines(items: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(item) for item in items).encode()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def table(separator: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode("utf-8-sig")  # as Excel does


def parquet(items: list[dict[str, Any]]) -> bytes:
    arrow = pytest.importorskip("pyarrow", reason="an extra: pip install -e '.[data]'")
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.Table.from_pylist(items), file := io.BytesIO()
    )
    return file.getvalue()


# --- what is read


@pytest.mark.parametrize(
    ("name", "content", "text", "said"),
    [
        ("a.txt", TEXT.encode(), TEXT, "a.txt, 61 characters: "),
        ("a.txt", ("\ufeff" + TEXT).encode(), TEXT, "a.txt, 61 characters: "),
        ("a.txt.gz", gzip.compress(TEXT.encode()), TEXT, "a.txt.gz, 61 characters: "),
        ("no-suffix", gzip.compress(TEXT.encode()), TEXT, "no-suffix, 61 characters: "),
        ("a.jsonl", json_lines(ROWS), STORIES, "a.jsonl, field story, 14 characters: "),
        ("a.jsonl.gz", gzip.compress(json_lines(ROWS)), STORIES, "a.jsonl.gz, field story, 14"),
        ("a.csv", table(), STORIES, "a.csv, field story, 14 characters: "),
        ("a.csv", table(";"), STORIES, "a.csv, field story, 14 characters: "),
        ("a.tsv", table("\t"), STORIES, "a.tsv, field story, 14 characters: "),
        ("a.parquet", lambda: parquet(ROWS), STORIES, "a.parquet, field story, 14 characters: "),
        (
            "a.zip",
            zipped({"b.txt": b"B", "a/c.txt": b"C\n", "d.jsonl": json_lines(ROWS)}),
            "C\nB\n" + STORIES,
            "3 files in a.zip, field story, 18 characters: ",
        ),
        ("a.html", b"<p>plain</p>", "<p>plain</p>", "a.html, 12 characters: "),
    ],
    ids=lambda value: value[:9] if isinstance(value, str) and value[:2] in ("a.", "no") else "",
)
def test_every_kind_of_file(
    tmp_path: Path, name: str, content: bytes | Callable[[], bytes], text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content() if callable(content) else content)
    field = "story" if "field" in said else ""
    found, description = read(path, field)
    assert found == text
    assert description.startswith(said)
    assert repr(text)[1:20] in description
    # Token files have the same text.
    text_files.prepare((path,), tmp_path / "tokens", "byte", field=field)
    data = texts.load(TextDataConfig(path=tmp_path / "tokens"), 1)
    assert data.tokenizer.decode([*data.train, *data.val]) == text


def test_a_folder_is_read_in_order_and_what_is_no_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes"
    for name, content in {
        "b.txt": b"second",
        "a/z.md": b"first\n",
        "c.gz": gzip.compress(b"third"),
        "d.zip": zipped({"x.txt": b"fourth\n", "y.png": b"\x89PNG\r\n\x1a\n"}),
        "e.pdf": b"%PDF-1.7",
        "f.txt": b"it\x92s",
        ".git/config": b"hidden",
        "__MACOSX/._b.txt": b"hidden",
    }.items():
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_bytes(content)
    text, description = read(notes)
    assert text == "first\nsecond\nthird\nfourth\n"
    assert description == f"4 files in notes/, 26 characters: {text!r}"
    line = capsys.readouterr().err.replace(f"{notes}/", "")
    assert line == (
        "left out: 3 of 7 files: d.zip/y.png is an image, not a text; e.pdf is a PDF, not a text; "
        "f.txt is not UTF-8: byte 0x92 at offset 2\n"
    )


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ([{"id": "x", "text": "a", "title": "b"}], "text"),
        ([{"Content": "a", "title": "b"}], "Content"),
        ([{"n": 3, "only": "a"}], "only"),
        ([{"text": None}, {"text": "a"}], "text"),
    ],
)
def test_the_field_of_the_text_is_found(tmp_path: Path, items: list, field: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(items))
    text, description = read(tmp_path / "a.jsonl")
    assert (text, f"field {field}," in description) == ("a\n\n", True)


@pytest.mark.slow
def test_a_dataset_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="an extra: pip install -e '.[data]'")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(test=made.select([1]), train=made).save_to_disk(tmp_path / "splits")
    hub = tmp_path / "hub"
    hub.mkdir()
    made.to_parquet(hub / "train-00000-of-00001.parquet")
    made.select([1]).to_parquet(hub / "test-00000-of-00001.parquet")
    # The card of a stranger can name addresses, which are not fetched.
    card = (
        "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files: http://[::1]:9/a.csv\n"
    )
    (hub / "README.md").write_text(f"{card}---\n# Stories\n")
    for name, said in (
        ("saved", "saved, a dataset"),
        ("splits", "splits, split train of a dataset"),
        ("hub", "hub, split train of a dataset"),
    ):
        text, description = read(tmp_path / name, "story")
        assert text == STORIES
        assert description.startswith(f"{said}, field story, 14 characters: ")
        with pytest.raises(UserError, match=f"--data.path .*{name} has the fields id, title"):
            read(tmp_path / name)
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UserError, match="needs the package datasets: pip install datasets"):
            read(tmp_path / name)
        monkeypatch.undo()


@pytest.mark.slow
def test_a_damaged_dataset_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="an extra: pip install -e '.[data]'")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match="the package datasets cannot read it"):
        read(tmp_path)


def test_a_folder_with_a_readme_of_its_own_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntitle: my notes\n---\nconfigs: none\n")
    assert not rows.is_dataset(tmp_path)
    assert read(tmp_path)[0].startswith("---\ntitle")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb") as file:
            file.write(gzip.compress(TEXT.encode()))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert read(Path(f"/dev/fd/{reader}"))[0] == TEXT
    finally:
        thread.join()
        os.close(reader)


# --- what is not read


def test_a_named_pipe_is_refused_before_it_waits_for_a_writer(
    refused: Refused, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    what = f"{tmp_path / 'pipe'}: it is a named pipe, not a regular file"
    with pytest.raises(UserError, match=f"^--data.path {what}; name a UTF-8 text file$"):
        read(tmp_path / "pipe")
    line = refused(prepare.main, "--out", tmp_path / "out", tmp_path / "pipe")
    assert line == f"error: {what}; name a UTF-8 text file"
    line = refused(prepare.main, "--out", tmp_path / "o", "--tokenizer", "bpe", tmp_path / "pipe")
    assert line.endswith("/pipe is a pipe, and --tokenizer bpe reads twice; name a file")
    with pytest.raises(UserError, match=f"^--prompt-file {what}$"):
        sample_options.read_text("--prompt-file", tmp_path / "pipe")


def test_files_of_a_run_and_token_files_are_no_pipes(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "train.bin", "val.bin", "samples/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="it is a pipe"):
        metrics.read_metrics(tmp_path)
    assert contents._samples(tmp_path) == {}
    (tmp_path / "val.bin").unlink()
    (tmp_path / "val.bin").touch()
    (tmp_path / "prepared.json").write_text('{"dtype": "uint16", "sha256": "", "tokens": 0}')
    tok = tokenizer.train("byte", "", 0)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tok.to_dict()))
    with pytest.raises(UserError, match=r"is not a folder of token files .*it is a pipe"):
        text_files.open_prepared(tmp_path)


WORD = zipped({"word/document.xml": b"<a/>", "[Content_Types].xml": b"<a/>"})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "is empty; name a UTF-8 text file"),
        ("a.pdf", b"%PDF-1.4\n%\xe2\xe3", "is a PDF, not a text; extract its text, for example"),
        ("a.docx", WORD, "is a Word, Excel or PowerPoint file, not a text; save it as plain text"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a Word, Excel or PowerPoint file"),
        ("a.epub", zipped({"mimetype": b"application/epub+zip"}), "OpenDocument file or an EPUB"),
        ("a.rtf", b"{\\rtf1 hello}", "is a rich text file (RTF), not a text; save it as plain"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "is an image, not a text"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "is an image, not a text"),
        ("a.wav", b"RIFF1234WAVEfmt ", "is a sound file, not a text; "),
        ("a.m4a", b"\0\0\0\x18ftypM4A ", "is a sound or a video, not a text"),
        ("a.txt", TEXT.encode("utf-16"), "is UTF-16, not a text; convert it, for example with"),
        ("a.txt", TEXT.encode("utf-16-le"), "iconv -f utf-16 -t utf-8 OLD > NEW"),
        ("a.txt", TEXT.encode("utf-16-be"), "is UTF-16"),
        ("a.csv", TEXT.encode("utf-16"), "is UTF-16"),
        ("a.txt", TEXT.encode("utf-32"), "is UTF-32"),
        ("a.xz", b"\xfd7zXZ\0", "is compressed, but not by gzip, not a text; unpack it first"),
        ("a.tgz", gzip.compress(b"x".ljust(257, b"\0") + b"ustar\0"), "is a 7z, RAR or tar archiv"),
        ("a.gz", gzip.compress(gzip.compress(b"x")), "is gzip inside gzip, not a text; unpack"),
        ("a.gz", gzip.compress(TEXT.encode())[:40], "is damaged or encrypted"),
        ("a.zip", zipped({"a.txt": b"x" * 99})[:60], "is damaged or encrypted"),
        ("a.zip", zipped({"a.png": b"\x89PNG\r\n\x1a\n"}), "has no text: "),
        ("a.bin", b"\x7fELF\2", "is a program, not a text"),
        ("a.pkl", b"\x80\x04\x95", "is arrays or objects, not a text"),
        ("a.db", b"SQLite format 3\0", "is an SQLite database, not a text; export its text"),
        ("a", b"PAR1\x15\x04", "is a Parquet file, not a text; let its name end in .parquet"),
        ("a.parquet", b"PAR1\x15\x04", "is no intact Parquet file ("),
        (
            "a.txt",
            b"it\x92s",
            "byte 0x92 at offset 2; convert it, for example with iconv -f cp1252",
        ),
        (
            "a.txt",
            b"caf\xe9",
            "byte 0xe9 at offset 3; convert it, for example with iconv -f cp1252",
        ),
        (
            "a.txt",
            b"ab\x81",
            "byte 0x81 at offset 2; it is neither UTF-8 nor cp1252: copy it again",
        ),
        ("a.txt", "é".encode() + b"\xe9", "byte 0xe9 at offset 2; it is damaged UTF-8: copy it"),
        ("a.csv", b"text\nok\nit\x92s\n", "byte 0x92 at offset 10; convert it"),
        ("a.csv", b"text\nhello, you\n", "line 2: more fields than the 1 that the first line"),
        ("a.csv", b"a,b\nx,y\n", "has the fields a, b; name that of the text with --data.field"),
        ("a.jsonl", b'{"text": "a"}\n[1]', "line 2: it is [1], but must be an object"),
        ("a.jsonl", b'{"text": "a"', "line 1 is not JSON ("),
        ("a.jsonl", b'{"text": 5}\n', "row 1: text is 5, but must be a text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "row 1: text is "),
        ("a.jsonl", b'{"a": "x", "b": "y"}', "has the fields a, b; name that of the text"),
    ],
    ids=lambda value: ascii(value[:25]) if isinstance(value, str) else "",
)
def test_every_kind_of_broken_file(
    refused: Refused, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if name == "a.parquet":
        pytest.importorskip("pyarrow", reason="an extra: pip install -e '.[data]'")
    with pytest.raises(UserError) as caught:
        texts.load(TextDataConfig(path=path), block_size=1)
    line = str(caught.value)
    assert line.startswith(f"--data.path {path}")
    assert words in line
    assert ("iconv" in line) == ("is UTF" in line or "is not UTF" in line)
    # `gptjax prepare` says the same.
    argv = ("--out", tmp_path / "out", "--tokenizer", "byte", path)
    assert refused(prepare.main, *argv) == f"error: {line.removeprefix('--data.path ')}"
    assert not (tmp_path / "out").exists()


def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS))
    with pytest.raises(UserError, match=r"has no field text; its fields are id, title, story"):
        read(tmp_path / "a.jsonl", "text")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1\x15\x04")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs the package pyarrow: pip install pyarrow"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.gz", "a.zip", "folder"])
def test_archives_cannot_have_endless_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(corpus, "MOST_UNPACKED", 1000)
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "a.gz").write_bytes(gzip.compress(b"a" * 1_000_000))
    else:
        big = b"a" * 1_000_000
        path.write_bytes(gzip.compress(big) if name == "a.gz" else zipped({"a": big, "b": big}))
    with pytest.raises(UserError, match=f"{name}.* over 200 for every byte on the disk"):
        read(path)
    with pytest.raises(UserError, match=f"{name}.* over 200 for every byte on the disk"):
        text_files.prepare((path,), tmp_path / "out", "byte")


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_LINE", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * (1 << 21)))
    with pytest.raises(UserError, match="has a line of more than 1 MiB"):
        read(tmp_path / "a.jsonl.gz")


# --- tokens and pairs


def test_a_long_text_is_encoded_in_pieces_as_it_is_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers", reason="an extra: pip install -e '.[bpe]'")
    text = (TEXT + "  \n\n\tnaïve   words\r\n" + "x" * 50) * 40
    tok = bpe.BPETokenizer.train(text, 300)
    at_once = tok.encode(text)
    monkeypatch.setattr(bpe, "LONG", 10)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    np.testing.assert_array_equal(tok.encode(text), at_once)
    assert f"encoded 100 % of {len(text):,} characters\n" in capsys.readouterr().err


def test_capitals_of_a_source_are_folded_if_the_model_never_saw_them() -> None:
    def source_ids(known: str, source: str) -> list[int]:
        tok = CharTokenizer.train(known)
        return PairTokenizer(tok, tok).encode_source(source, 20).tolist()

    lower, upper = "philarmonc", "PHILARMONC"
    assert source_ids(lower, "Philharmonic") == source_ids(lower, "philharmonic")
    assert source_ids(upper, "Philharmonic") == source_ids(upper, "PHILHARMONIC")
    both = lower + upper
    assert source_ids(both, "Philharmonic") != source_ids(both, "philharmonic")
    with pytest.raises(UserError, match=r"the source 'Zz': text has characters .* 'Z' at 0"):
        source_ids(lower, "Zz")


def test_pairs_are_no_table(tmp_path: Path) -> None:
    """A .tsv of pairs has no line of names."""
    path = tmp_path / "a.tsv"
    path.write_text("ab\tx\nba\ty\n")
    assert parse_tsv(text_files.read_text(path)[0], path) == {"ab": ["x"], "ba": ["y"]}


# --- sound


def tone() -> np.ndarray:
    return (0.5 * np.sin(np.arange(16_000) / 10)).astype(np.float32)


@pytest.fixture
def soundfile() -> Any:
    pytest.importorskip("soxr", reason="an extra: pip install -e '.[speech]'")
    return pytest.importorskip("soundfile", reason="an extra: pip install -e '.[speech]'")


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus")])
def test_sound_that_libsndfile_does_not_read(
    soundfile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    av = pytest.importorskip("av", reason="an extra: pip install -e '.[sound]'")
    path = tmp_path / name
    rate = 48_000
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.repeat(tone(), 3)[None], "fltp", "mono")
        frame.rate = rate
        size = 1024 if codec == "aac" else 960
        sample_format = "fltp" if codec == "aac" else "s16"
        resampler = av.AudioResampler(sample_format, "mono", rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    samples_N, note = audio.read_checked(path)
    assert note == ""
    assert len(samples_N) == pytest.approx(16_000, abs=1_500)
    assert audio.duration(path) == pytest.approx(1, abs=0.1)
    assert np.abs(samples_N).max() == pytest.approx(0.5, abs=0.1)
    monkeypatch.setattr(other_sound, "MOST_SAMPLES", 1_000)
    with pytest.raises(UserError, match=f"{name} is longer than 1,000 samples"):
        audio.read(path)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=f"{name} cannot be read .*: pip install av, or install"):
        audio.read(path)


FFMPEG = """#!{python}
import sys
assert sys.argv[sys.argv.index("-i") + 1] == "file:{path}", sys.argv
import numpy
sys.stdout.buffer.write(numpy.full(8000, 0.25, numpy.float32).tobytes())
"""


def test_ffmpeg_is_called_where_pyav_is_missing(
    soundfile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that checks its arguments: the real one is no Python package."""
    path = tmp_path / "-a b.m4a"
    path.write_bytes(b"\0\0\0\x18ftypM4A ")
    program = tmp_path / "bin/ffmpeg"
    program.parent.mkdir()
    program.write_text(FFMPEG.format(python=sys.executable, path=path))
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    np.testing.assert_allclose(audio.read(path), 0.25)
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('broken: no header')\n")
    with pytest.raises(UserError, match=r"cannot be read as sound \(broken: no header\)"):
        audio.read(path)


@pytest.mark.parametrize("has_pyav", [True, False])
def test_a_playlist_opens_no_other_file(
    soundfile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pyav: bool
) -> None:
    soundfile.write(tmp_path / "secret.wav", tone(), 16_000)
    path = tmp_path / "a.m4a"
    path.write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.wav\nhttp://[::1]:9/a.wav\n")
    if not has_pyav:
        monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"cannot be read as sound \(it is a text\)"):
        audio.read(path)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_a_recording_that_was_cut_off_is_said(
    soundfile: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / name
    soundfile.write(path, np.tile(tone(), 4), 16_000)
    assert audio.read_checked(path)[1] == ""
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    samples_N, note = audio.read_checked(path)
    assert note.startswith(f"{path} is cut off: its header promises 4.0 s, and it has ")
    assert 20_000 < len(samples_N) < 40_000
    for _ in range(2):  # said at every start
        (clip,) = recording_checks.measure([recording_checks.Clip(path, "a")], tmp_path, "stop")
        assert clip.n_samples == len(samples_N)
        assert f"warning: 1 of 1 recordings end too early: {path}" in capsys.readouterr().err


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"])
def test_a_wav_that_was_written_to_a_pipe_is_not_cut_off(
    soundfile: Any, tmp_path: Path, size: bytes
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), 16_000, subtype="PCM_16")
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = size
    path.write_bytes(raw)
    samples_N, note = audio.read_checked(path)
    assert (len(samples_N), note) == (16_000, "")


def test_an_ogg_that_was_cut_off_is_refused(soundfile: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", tone(), 16_000)
    raw = (tmp_path / "a.ogg").read_bytes()
    (tmp_path / "a.ogg").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"a\.ogg .* cut off"):
        audio.read(tmp_path / "a.ogg")


def test_files_that_are_no_sound_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("a.txt", "b/c.png", ".hidden", "d", "e", "f", "g")]
    audio.say_left_out(tmp_path, files, "no sound")
    assert capsys.readouterr().err == (
        f"left out: 6 files in {tmp_path}, no sound: a.txt, b/c.png, d, e, f and 1 more\n"
    )
