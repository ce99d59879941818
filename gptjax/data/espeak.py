"""Synthetic speech by eSpeak NG (extra: espeak): any text, in many voices.

`--data.name espeak --data.path lines.txt` trains on it. It sounds like a machine, but it costs
nothing and its transcripts are right.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.atomic import atomic_folder
from gptjax.data.audio import SAMPLE_RATE
from gptjax.data.espeak_worker import NEEDS
from gptjax.errors import UserError, import_extra

LANGUAGES = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4")
VOICES = tuple(f"{language}+{variant}" for language in LANGUAGES for variant in VARIANTS)
WORDS_PER_MINUTE = 120, 220
PITCH = 30, 70
"""On eSpeak's scale from 0 to 99; 50 is the voice's normal pitch."""
CHUNK = 100
"""Clips per process. It is fixed, because eSpeak's output depends on what it spoke before."""


def make(
    texts: Sequence[str], n_clips: int, seed: int, folder: Path, n_workers: int | None = None
) -> Path:
    """Speaks n_clips of these texts; returns the manifest in the folder.

    All texts are spoken once, in random order, before any is repeated. Voice, rate and pitch of a
    clip are a function of (seed, its number). The files are the same bytes for any number of
    workers. A folder that already has exactly these clips is reused. Raises UserError if the
    library is missing, a text makes no sound, or the folder holds something else.
    """
    import_extra("espeakng_loader", NEEDS)  # reported here, not by a worker
    import_extra("soundfile", NEEDS)
    import_extra("soxr", NEEDS)
    if not texts or n_clips < 1:
        raise UserError(f"{len(texts)} texts and {n_clips} clips make no speech; want one of each")
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    request = {"texts": digest, "n_clips": n_clips, "seed": seed}
    request["library"] = version("espeakng-loader")
    manifest = folder / "manifest.jsonl"
    if folder.exists():
        if _made(folder) == request and manifest.is_file():
            return manifest
        raise UserError(f"{folder} holds something else; remove it, or name another folder")
    rows = list(itertools.islice(_clips(texts, seed), n_clips))
    try:
        with (
            atomic_folder(folder) as part,
            ThreadPoolExecutor(n_workers or os.cpu_count() or 1) as pool,
        ):
            (part / "clips").mkdir()
            for done in _speak(pool, rows, part):
                _progress(done, n_clips)
            lines = (json.dumps({k: row[k] for k in ("audio", "text", "speaker")}) for row in rows)
            (part / manifest.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (part / "made.json").write_text(json.dumps(request) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another") from None
    return manifest


def _made(folder: Path) -> Any:
    """The request that the folder was made for; None if `make` did not make it."""
    try:
        return json.loads((folder / "made.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _clips(texts: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """Text, voice, rate and pitch of every clip; endless."""
    for epoch in itertools.count():
        order = np.random.default_rng((seed, epoch)).permutation(len(texts))
        for place, i in enumerate(order.tolist()):
            number = epoch * len(texts) + place
            rng = np.random.default_rng((seed, 0, number))
            yield {
                "audio": f"clips/{number:07d}.wav",
                "text": texts[i],
                "speaker": VOICES[int(rng.integers(len(VOICES)))],
                "rate": int(rng.integers(*WORDS_PER_MINUTE)),
                "pitch": int(rng.integers(*PITCH)),
            }


def _speak(pool: ThreadPoolExecutor, rows: Sequence[dict[str, Any]], folder: Path) -> Iterator[int]:
    """Speaks the rows in processes, one per chunk; yields the number of finished rows."""
    code = "from gptjax.data.espeak_worker import main; main()"

    def speak(chunk: Sequence[dict[str, Any]]) -> None:
        request = json.dumps({"folder": str(folder), "rate": SAMPLE_RATE, "rows": chunk})
        command = [sys.executable, "-c", code]
        worker = subprocess.run(command, input=request, capture_output=True, text=True)
        if worker.returncode:
            last = (worker.stderr.strip().splitlines() or [f"exit code {worker.returncode}"])[-1]
            raise UserError(last.removeprefix("error: "))

    starts = range(0, len(rows), CHUNK)
    pending = [pool.submit(speak, rows[first : first + CHUNK]) for first in starts]
    try:
        for first, future in zip(starts, pending, strict=True):
            future.result()
            yield min(first + CHUNK, len(rows))
    finally:
        for future in pending:
            future.cancel()


def _progress(done: int, n_clips: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == n_clips else ""
        print(f"\rspoken {done:,}/{n_clips:,}", end=end, file=sys.stderr, flush=True)
