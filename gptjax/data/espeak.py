"""Synthetic speech by eSpeak NG (extra: espeak): any text, in many voices.

`--data.name espeak --data.path lines.txt` trains on it. It sounds like a machine, but it costs
nothing and its transcripts are right. Worker processes speak the clips. This module imports no JAX,
so they start quickly.
"""

import ctypes
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

from gptjax import json_files
from gptjax.atomic import atomic_folder
from gptjax.errors import UserError, exit_codes, import_extra

NEEDS = "synthetic speech needs"
LANGUAGES = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4")
VOICES = tuple(f"{language}+{variant}" for language in LANGUAGES for variant in VARIANTS)
WORDS_PER_MINUTE = 120, 220
PITCH = 30, 70
"""On eSpeak's scale from 0 to 99; 50 is the voice's normal pitch."""
CHUNK = 100
"""Clips per process. It is fixed, because eSpeak's output depends on what it spoke before."""
SAMPLE_RATE = 16_000
"""As in audio.py, which imports JAX."""
# Constants of espeak-ng/speak_lib.h.
_SYNCHRONOUS, _RATE, _PITCH, _UTF8, _CHARACTERS = 2, 1, 3, 1, 1


def make(
    texts: Sequence[str],
    n_clips: int,
    seed: int,
    folder: Path,
    n_workers: int | None = None,
    rate: int = SAMPLE_RATE,
) -> Path:
    """Speaks n_clips of these texts; returns the manifest in the folder.

    All texts are spoken once, in random order, before any is repeated. Voice, tempo and pitch of a
    clip are a function of (seed, its number). The files are the same bytes for any number of
    workers; their sample rate is `rate`. A folder that already has exactly these clips is reused.
    Raises UserError if the library is missing, a text makes no sound, or the folder holds something
    else.
    """
    import_extra("espeakng_loader", NEEDS)  # reported here, not by a worker
    import_extra("soundfile", NEEDS)
    import_extra("soxr", NEEDS)
    if not texts or n_clips < 1:
        raise UserError(f"{len(texts)} texts and {n_clips} clips make no speech; want one of each")
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    request = {"texts": digest, "n_clips": n_clips, "seed": seed}
    request["library"] = version("espeakng-loader")
    if rate != SAMPLE_RATE:
        request["rate"] = rate
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
            for done in _speak(pool, rows, part, rate):
                if sys.stderr.isatty():
                    end = "\n" if done == n_clips else ""
                    print(f"\rspoken {done:,}/{n_clips:,}", end=end, file=sys.stderr, flush=True)
            lines = (json.dumps({k: row[k] for k in ("audio", "text", "speaker")}) for row in rows)
            (part / manifest.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (part / "made.json").write_text(json.dumps(request) + "\n", encoding="utf-8")
    except OSError as error:
        if _made(folder) == request:  # another process has made it in the meantime
            return manifest
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another") from None
    return manifest


def _made(folder: Path) -> Any:
    """The request that the folder was made for; None if `make` did not make it."""
    try:
        return json_files.read(folder / "made.json", dict[str, Any], "")
    except UserError:
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


def _speak(
    pool: ThreadPoolExecutor, rows: Sequence[dict[str, Any]], folder: Path, rate: int
) -> Iterator[int]:
    """Speaks the rows in processes, one per chunk; yields the number of finished rows."""
    code = "from gptjax.data.espeak import speak_rows; speak_rows()"

    def speak(chunk: Sequence[dict[str, Any]]) -> None:
        request = json.dumps({"folder": str(folder), "rate": rate, "rows": chunk})
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


def speak_rows() -> None:
    """Speaks the rows of a request on stdin into WAV files; what a worker process runs."""
    with exit_codes():
        request = json.load(sys.stdin)
        soundfile, soxr = import_extra("soundfile", NEEDS), import_extra("soxr", NEEDS)
        engine, rate = Engine(), request["rate"]
        for row in request["rows"]:
            samples_N = engine.speak(row["text"], row["speaker"], row["rate"], row["pitch"])
            samples_N = soxr.resample(samples_N, engine.sample_rate, rate)
            soundfile.write(Path(request["folder"]) / row["audio"], samples_N, rate)


class Engine:
    """The eSpeak library. It has global state, so a process has only one engine."""

    def __init__(self) -> None:
        loader = import_extra("espeakng_loader", NEEDS)
        self._library = ctypes.CDLL(loader.get_library_path())
        data = loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        self._pieces: list[bytes] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._receive)  # kept here, because the library keeps no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: int | None, n: int, _events: int | None) -> int:
        if samples and n > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * n))
        return 0  # go on

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        """int16 samples (N,). Raises UserError for an unknown voice and a text without sound."""
        self._pieces.clear()
        # Without a seed, its noise depends on the time.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"eSpeak has no voice {voice}")
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        content = text.encode()
        self._library.espeak_Synth(
            content, ctypes.c_size_t(len(content) + 1), 0, _CHARACTERS, 0, _UTF8, None, None
        )
        samples_N = np.frombuffer(b"".join(self._pieces), np.int16)
        if not samples_N.any():
            raise UserError(f"{text[:60]!r} has no sound; leave that line out")
        return samples_N
