"""One reader checks every JSON file: what it names, and that nothing gets past it."""

import json
import os
import stat
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax import config_json, json_files, reading
from gptjax.config import Config
from gptjax.errors import UserError
from gptjax.runs import run_directory


class Form(TypedDict):
    """One field of every kind."""

    name: str
    count: int
    share: float
    on: bool
    kind: Literal["a", "b"]
    bits: Literal[4, 8]
    words: list[str]
    sizes: dict[str, int]
    path: NotRequired[Path | None]
    more: NotRequired[Any]


GOOD: Any = {
    "name": "x",
    "count": 1,
    "share": 1,
    "on": True,
    "kind": "a",
    "bits": 4,
    "words": ["a"],
    "sizes": {"a": 1},
}


def refused(content: str | bytes, form: Any = Form) -> str:
    with pytest.raises(UserError) as caught:
        json_files.parse(content, form, "x.json", "mend it")
    message = str(caught.value)
    assert message.startswith("x.json")
    assert message.endswith("; mend it")
    assert len(message) < 400
    return message


@pytest.mark.parametrize("fields", [{}, {"path": None}, {"path": "a"}, {"more": [{}]}, {"new": 0}])
def test_a_file_of_the_form_is_read(fields: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD | fields))
    assert json_files.read(path, Form, "mend it") == GOOD | fields


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": 3}, "name is 3, but must be a text"),
        ({"name": None}, "name is null, but must be a text"),
        ({"name": "\ud800"}, "name is '\\ud800', but must be a text without half a surrogate"),
        ({"count": True}, "count is true, but must be a whole number"),
        ({"count": 1.0}, "count is 1.0, but must be a whole number"),
        ({"share": "1"}, "share is '1', but must be a number"),
        ({"share": [[1]]}, "share is [[1]], but must be a number"),
        ({"on": 1}, "on is 1, but must be true or false"),
        ({"kind": "c"}, "kind is 'c', but must be one of a, b"),
        ({"kind": ["a"]}, "kind is ['a'], but must be one of a, b"),
        ({"bits": True}, "bits is true, but must be one of 4, 8"),
        ({"words": "ab"}, "words is 'ab', but must be a list"),
        ({"words": ["a", {}]}, "words[1] is {}, but must be a text"),
        ({"sizes": []}, "sizes is [], but must be an object"),
        ({"sizes": {"a": {"b": 1}}}, "sizes.a is {'b': 1}, but must be a whole number"),
        ({"path": 3}, "path is 3, but must be the name of a file or null"),
        ({"path": "a\0b"}, "but must be the name of a file"),
        ({"path": "\ud800"}, "but must be the name of a file"),
        ({"name": "x" * 9999}, ""),
    ],
)
def test_the_place_and_what_was_expected_are_named(fields: dict[str, Any], words: str) -> None:
    if words:
        assert words in refused(json.dumps(GOOD | fields))
    else:
        assert "but must be a whole number" in refused(json.dumps(GOOD | {"count": fields["name"]}))


def test_what_is_missing_is_named() -> None:
    assert "x.json has no count" in refused(json.dumps({k: GOOD[k] for k in GOOD if k != "count"}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON (Expecting value"),
        ("{", "is not JSON"),
        ("[]", "it is [], but must be an object"),
        ("null", "it is null, but must be an object"),
        (b"\xff", "is not UTF-8 at byte offset 0"),
        ('{"more": NaN}', "NaN is no number"),
        ('{"more": [-Infinity]}', "-Infinity is no number"),
        ('{"more": 1e999}', "1e999 is too large"),
        ('{"more": ' + "9" * 9999 + "}", "is not JSON (Exceeds the limit"),
        ('{"more": 1, "more": 2}', "has the key 'more' twice"),
        ("[" * 99_999, "nested more than 100 deep"),
        ("[" * 200 + "]" * 200, "nested more than 100 deep"),
        ('{"more": ' * 200 + "1" + "}" * 200, "nested more than 100 deep"),
        ('{"a":1 // a comment\n}', "is not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_json_is_refused(content: str | bytes, words: str) -> None:
    assert words in refused(content)


def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MOST_BYTES", 1000)
    (tmp_path / "large").write_text(" " * 1001)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    os.mknod(tmp_path / "socket", stat.S_IFSOCK)
    (tmp_path / "link").symlink_to("link")
    for path, words in (
        (tmp_path / "large", "it has more than 0.0 MB"),
        (tmp_path / "pipe", "it is a pipe, not a regular file"),
        (tmp_path / "link", "Too many levels of symbolic links"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "it is a folder"),
        (tmp_path / "socket", "it is a socket, not a regular file"),
        (Path("/dev/zero"), "it is a device, not a regular file"),
        (Path("a\0b"), "no file can have such a name"),
        (Path("\ud800"), "no file can have such a name"),
    ):
        with pytest.raises(UserError, match="cannot be read") as caught:
            json_files.read(path, Form, "mend it")
        assert words in str(caught.value)


def test_of_pipes_only_one_without_a_name_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a named pipe, not a regular file"):
        reading.check(tmp_path / "pipe", pipe=True)
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    os.close(writer)
    assert reading.read_bytes(Path(f"/dev/fd/{reader}"), 3, pipe=True) == b"abc"
    os.close(reader)


def test_the_memory_of_the_host_is_a_number_of_bytes() -> None:
    assert 1 << 28 < reading.host_memory() < 1 << 50
    assert [reading.in_words(n) for n in (5e4, 2e9, 5e12)] == ["0.1 MB", "2.0 GB", "5,000.0 GB"]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.data(), ANY_JSON)
def test_any_value_in_any_place_of_a_config_is_read_or_one_line(
    data: st.DataObject, value: Any
) -> None:
    saved = json.loads(config_json.to_json(Config()))
    section = data.draw(st.sampled_from([saved, *(v for v in saved.values() if type(v) is dict)]))
    section[data.draw(st.sampled_from([*section, "other"]))] = value
    try:
        assert isinstance(config_json.from_json(json.dumps(saved)), Config)
    except UserError as error:
        assert str(error).startswith("config.json")  # noqa: PT017 - or it is right


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("model", "logit_softcap", [1], "model.logit_softcap is [1], but must be a number"),
        ("model", "n_layer", True, "model.n_layer is true, but must be a whole number"),
        ("model", "norm", "batch", "model.norm is 'batch', but must be one of layernorm"),
        ("model", "type", {}, "model.type is {}, but must be one of"),
        ("model", "type", "OptimConfig", "model.block_size is no field of OptimConfig"),
        ("optim", "type", "SpeechConfig", "optim.name is no field"),
        ("model", "n_head", 0, "--model.n-head is 0, but must be at least 1"),
        ("data", "type", "PairsDataConfig", "data.field is no field"),
        ("data", "path", "a\0b", "data.path is 'a\\x00b', but must be the name of a file"),
        ("train", "init_from", 3, "train.init_from is 3, but must be the name of a file or null"),
    ],
)
def test_a_tampered_config_is_one_line(
    section: str, name: str, value: Any, words: str, tmp_path: Path
) -> None:
    saved = json.loads(config_json.to_json(Config()))
    saved[section][name] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError) as caught:
        config_json.read(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("environment.json", "{}", "has no data"),
        ("environment.json", '{"data": []}', "data is [], but must be an object"),
        ("environment.json", '{"data": {"source": "", "sha256": 3}}', "data.sha256 is 3, but"),
        ("environment.json", "[" * 9999, "nested more than 100 deep"),
        ("format.json", "[]", "it is [], but must be an object"),
        ("format.json", '{"bits": "8"}', "bits is '8', but must be one of ternary, 2"),
        ("format.json", '{"bits": 7}', "bits is 7, but must be one of ternary, 2"),
        ("format.json", '{"bits": 8, "other": 1}', "other"),
    ],
)
def test_the_other_files_of_a_run(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    read = {
        "environment.json": run_directory.read_environment,
        "format.json": run_directory.read_format,
    }
    with pytest.raises(UserError) as caught:
        read[name](tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert words in str(caught.value)
