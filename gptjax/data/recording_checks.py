"""Which recordings can be decoded: each is decoded once before training, and remembered.

A sound file can have a good header and a broken body, for example a copy that was cut off. Found
only when a batch reads it, it would end a run in the middle. So every file is decoded before the
first step. What is found is remembered by size and time of change in the cache folder, so that the
next start takes as long as asking for those. Files that cannot be decoded are not remembered: they
are tried again at every start, because they may have been mended.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gptjax.atomic import write_json
from gptjax.data import audio, downloads, recordings
from gptjax.data.recordings import Clip
from gptjax.errors import UserError

N_NAMED = 3
"""Broken files that a message names. It counts the others."""


def measure(clips: Sequence[Clip], folder: Path, on_broken: str) -> list[Clip]:
    """The clips that can be decoded, with their lengths.

    folder: of the data; decides where the lengths are remembered. on_broken: "stop" raises
    UserError with the names of the broken ones, "skip" prints these and leaves them out.
    """
    cache = _cache_file(folder)
    known = _read(cache)
    stamps = {clip.path: _stamp(clip.path) for clip in clips}
    new = [p for p, stamp in stamps.items() if not stamp or known.get(str(p), [])[:2] != stamp]
    broken: dict[Path, str] = {}
    results = zip(new, recordings.map_ahead(_try, new), strict=True)
    for n_done, (path, found) in enumerate(results, 1):
        if isinstance(found, str):
            broken[path] = found
        else:
            known[str(path)] = [*stamps[path], *found]
        if sys.stderr.isatty() and (n_done % 100 == 0 or n_done == len(new)):
            end = "\n" if n_done == len(new) else ""
            print(f"\rdecoded {n_done:,}/{len(new):,}", end=end, file=sys.stderr, flush=True)
    if len(new) > len(broken):
        _write(cache, known)
    if broken:
        _report(broken, len(stamps), on_broken)
    return [
        clip._replace(seconds=known[str(clip.path)][2], n_samples=known[str(clip.path)][3])
        for clip in clips
        if clip.path not in broken
    ]


def _try(path: Path) -> tuple[float, int] | str:
    """Length in seconds, by the header, and in samples at 16 kHz; or why it cannot be decoded."""
    try:
        n_samples = len(audio.read(path))
        return audio.duration(path), n_samples
    except UserError as error:
        return str(error)


def _report(broken: dict[Path, str], n_files: int, on_broken: str) -> None:
    why = "; ".join(text.partition("; ")[0] for text in list(broken.values())[:N_NAMED])
    others = f"; and {len(broken) - N_NAMED} more" if len(broken) > N_NAMED else ""
    what = f"{len(broken)} of {n_files:,} recordings cannot be used: {why}{others}"
    if on_broken == "stop":
        raise UserError(f"{what}. Mend or remove them, or leave them out by --data.on-broken skip")
    print(f"left out: {what}", file=sys.stderr, flush=True)


def _stamp(path: Path) -> list[int]:
    """[size, time of change in ns], or [] for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _cache_file(folder: Path) -> Path:
    """The folder of data may be read-only, so this is in the user's cache folder."""
    digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return downloads.cache() / "recordings" / f"{digest}.json"


def _read(path: Path) -> dict[str, list]:
    """{path: [size, time, seconds, samples]}. Anything else in the file counts as not there."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        kinds = [int, int, float, int]
        return {name: row for name, row in rows.items() if [type(x) for x in row] == kinds}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def _write(path: Path, rows: dict[str, list]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, rows, indent=None)
    except OSError as error:  # a full disk, or another process that writes it: slower, not worse
        print(f"{path} cannot be written ({error.strerror}); the next start decodes all recordings "
              "again", file=sys.stderr)  # fmt: skip
