"""Which recordings can be decoded: each is decoded once before training, and remembered.

A sound file can have a good header and a broken body, for example a copy that was cut off. Found
only when a batch reads it, it would end a run in the middle. So every file is decoded before the
first step. What is found is remembered by size and time of change in the cache folder, so that the
next start takes as long as asking for those. Files that cannot be decoded, or that were cut off,
are not remembered: they are tried again at every start, because they may have been mended.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax import json_files
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
    cut: dict[Path, str] = {}
    results = zip(new, recordings.map_ahead(_try, new), strict=True)
    for n_done, (path, found) in enumerate(results, 1):
        if isinstance(found, str):
            broken[path] = found
        else:
            seconds, n_samples, note = found
            known[str(path)] = [*stamps[path], seconds, n_samples]
            cut |= {path: note} if note else {}
        if sys.stderr.isatty() and (n_done % 100 == 0 or n_done == len(new)):
            end = "\n" if n_done == len(new) else ""
            print(f"\rdecoded {n_done:,}/{len(new):,}", end=end, file=sys.stderr, flush=True)
    if len(new) > len(broken):
        _write(cache, {name: row for name, row in known.items() if Path(name) not in cut})
    if cut:
        what = f"{len(cut)} of {len(stamps):,} recordings end too early: {_listed(cut)}"
        print(f"warning: {what}", file=sys.stderr, flush=True)
    if broken:
        _report(broken, len(stamps), on_broken)
    return [
        clip._replace(seconds=known[str(clip.path)][2], n_samples=known[str(clip.path)][3])
        for clip in clips
        if clip.path not in broken
    ]


def _try(path: Path) -> tuple[float, int, str] | str:
    """Length in seconds and in samples at 16 kHz, and a message if the file was cut off.

    Or why it cannot be decoded.
    """
    try:
        samples_N, note = audio.read_checked(path)
        return audio.duration(path), len(samples_N), note
    except UserError as error:
        return str(error)


def _report(broken: dict[Path, str], n_files: int, on_broken: str) -> None:
    what = f"{len(broken)} of {n_files:,} recordings cannot be used: {_listed(broken)}"
    if on_broken == "stop":
        raise UserError(f"{what}. Mend or remove them, or leave them out by --data.on-broken skip")
    print(f"left out: {what}", file=sys.stderr, flush=True)


def _listed(messages: dict[Path, str]) -> str:
    why = "; ".join(text.partition("; ")[0] for text in list(messages.values())[:N_NAMED])
    return why + (f"; and {len(messages) - N_NAMED} more" if len(messages) > N_NAMED else "")


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
        rows = json_files.read(path, dict[str, list[Any]], "it is written again")
    except UserError:
        return {}
    kinds = [int, int, float, int]
    return {name: row for name, row in rows.items() if [type(x) for x in row] == kinds}


def _write(path: Path, rows: dict[str, list]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, rows, indent=None)
    except OSError as error:  # a full disk, or another process that writes it: slower, not worse
        print(f"{path} cannot be written ({error.strerror}); the next start decodes all recordings "
              "again", file=sys.stderr)  # fmt: skip
