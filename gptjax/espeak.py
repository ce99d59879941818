"""Speech made by machine: any text in many voices of eSpeak NG, as clips with a manifest.

    python -m gptjax.espeak TEXT.txt --out DIR --clips 5000

speaks the lines of a text; `--data.path DIR` then trains on them. Wants the extra `espeak`.
"""

import ctypes
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from gptjax.config import parse_command
from gptjax.errors import UserError, exit_codes, import_extra

# audio.py knows it too, but imports jax, for which every worker process would wait.
SAMPLE_RATE = 16_000
NEEDS = "synthetic speech needs"
# "en" is British; the last two are of the West Midlands and of Lancaster.
ACCENTS = (
    *("en-us", "en-us-nyc", "en", "en-029", "en-gb-scotland", "en-gb-x-rp"),
    *("en-gb-x-gbcwmd", "en-gb-x-gbclan"),
)
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
SPEAKERS = tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS)
RATES, PITCHES = (130, 220), (30, 70)
"""Words a minute and eSpeak's own scale of 0 to 99, each from ... up to but without."""
# eSpeak keeps noise and phases from one utterance to the next, and forgets them only with its
# process. So every so many clips begin in a process of their own, whoever makes them.
CHUNK = 128


class Voice(NamedTuple):
    """Who speaks, how fast (words a minute) and how high (0 to 99)."""

    speaker: str
    rate: int
    pitch: int


def voice(seed: int, i: int) -> Voice:
    """The voice of clip i; a pure function of its arguments."""
    rng = np.random.default_rng((seed, i))
    speaker = SPEAKERS[int(rng.integers(len(SPEAKERS)))]
    return Voice(speaker, int(rng.integers(*RATES)), int(rng.integers(*PITCHES)))


def make(
    texts: Sequence[str], n_clips: int, seed: int, folder: Path, n_workers: int | None = None
) -> Path:
    """Has clip i say texts[i % len(texts)], in its voice(seed, i); returns the manifest's path.

    Writes FOLDER/{manifest.jsonl, made.json, clips/*.wav}, 16 kHz, 16 bits, one channel, whole or
    not at all. The bytes depend on neither n_workers (default: all cores) nor the run. A folder
    that this very call has made before is left as it is. A script that calls this must guard its
    main(), as with anything that spawns processes. Raises UserError for no texts or clips, a text
    without sound, a folder that holds anything else or cannot be written, a missing package.
    """
    for module in ("espeakng_loader", "soundfile", "soxr"):
        import_extra(module, NEEDS)  # missing? Better said now
    if not texts:
        raise UserError("there are no texts to speak; give at least one")
    if n_clips < 1:
        raise UserError(f"--clips is {n_clips}, but must be at least 1")
    if seed < 0:
        raise UserError(f"--seed is {seed}, but must be at least 0")
    request = {
        "texts_sha256": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "n_clips": n_clips,
        "seed": seed,
        "espeakng_loader": importlib.metadata.version("espeakng-loader"),
    }
    manifest = folder / "manifest.jsonl"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_made(folder, request)
        return manifest
    whole = folder.resolve()
    part = whole.with_name(whole.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / "clips").mkdir(parents=True)
        jobs, rows = [], []
        for i in range(n_clips):
            name, text, how = f"clips/{i:06d}.wav", texts[i % len(texts)], voice(seed, i)
            jobs.append((part / name, text, how))
            rows.append({"audio": name, "text": text, "speaker": how.speaker})
        seconds = _speak_all(jobs, n_workers or os.cpu_count() or 1)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (part / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
        made = {**request, "seconds": round(seconds, 3)}
        (part / "made.json").write_text(json.dumps(made, indent=2) + "\n")
        part.rename(whole)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name a writable folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _check_made(folder: Path, request: dict[str, Any]) -> None:
    try:
        made = json.loads((folder / "made.json").read_text())
        differ = [name for name, value in request.items() if made[name] != value]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--out {folder} holds something else; name a new folder") from None
    if differ:
        raise UserError(
            f"--out {folder} was made with another {', '.join(differ)}; name a new folder, or "
            "remove that one"
        )


Job = tuple[Path, str, Voice]


def _speak_all(jobs: list[Job], n_workers: int) -> float:
    """Writes the clips, each chunk by a new process; returns the seconds of sound."""
    bar = Progress(console=Console(stderr=True), transient=True)
    bar.disable = not bar.console.is_terminal
    with bar, ThreadPoolExecutor(n_workers) as threads:
        task = bar.add_task("speaking", total=len(jobs))

        def in_new_process(chunk: list[Job]) -> float:
            # One executor a chunk: one with max_tasks_per_child may wait for ever (gh-115634).
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn, _ignore_interrupts) as process:
                seconds = process.submit(_speak_chunk, chunk).result()
            bar.advance(task, len(chunk))
            return seconds

        chunks = [jobs[first : first + CHUNK] for first in range(0, len(jobs), CHUNK)]
        futures = [threads.submit(in_new_process, chunk) for chunk in chunks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # Ctrl-C, too, waits for no more than the chunks at work
            threads.shutdown(cancel_futures=True)
        # In order, but for those that were never begun because another failed.
        return sum(future.result() for future in futures if not future.cancelled())


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; ours alone decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _speak_chunk(jobs: list[Job]) -> float:
    """Writes clips, in this order; returns their seconds. At most one call in a process."""
    soundfile, soxr = import_extra("soundfile", NEEDS), import_extra("soxr", NEEDS)
    speech, n_samples = _Speech(), 0
    for path, text, how in jobs:
        samples_N = speech.say(text, how)
        if not samples_N.any():
            raise UserError(f"the line {text[:60]!r} yields no sound; leave it out")
        samples_N = soxr.resample(samples_N.astype(np.float32), speech.rate, SAMPLE_RATE)
        samples_N = np.rint(samples_N).clip(-(2**15), 2**15 - 1).astype(np.int16)
        file = io.BytesIO()  # libsndfile itself would not say that the disk is full
        soundfile.write(file, samples_N, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        path.write_bytes(file.getvalue())
        n_samples += len(samples_N)
    return n_samples / SAMPLE_RATE


class _Speech:
    """The library, by ctypes; constants are those of speak_lib.h."""

    def __init__(self) -> None:
        loader = import_extra("espeakng_loader", NEEDS)
        self._pieces: list[bytes] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._receive)  # kept, for C holds no reference
        try:
            self._library = ctypes.CDLL(loader.get_library_path())
            synchronous, do_not_exit = 2, 0x8000
            data = os.fsencode(loader.get_data_path())
            self.rate = self._library.espeak_Initialize(synchronous, 0, data, do_not_exit)
        except (OSError, RuntimeError) as error:
            raise UserError(f"eSpeak NG does not load ({error}); reinstall it") from None
        if self.rate <= 0:
            raise UserError("eSpeak NG does not find its voices; reinstall espeakng-loader")
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave: int | None, n_samples: int, events: int | None) -> int:
        if wave and n_samples > 0:
            self._pieces.append(ctypes.string_at(wave, 2 * n_samples))
        return 0  # go on

    def say(self, text: str, how: Voice) -> np.ndarray:
        """int16 samples (N,) at self.rate."""
        self._pieces.clear()
        # A NUL would end the text; what else is no UTF-8 is left unsaid.
        raw = text.replace("\0", " ").encode(errors="ignore")
        size, utf8, words_per_minute, pitch = ctypes.c_size_t(len(raw) + 1), 1, 1, 3
        failed = self._library.espeak_SetVoiceByName(how.speaker.encode())
        failed |= self._library.espeak_SetParameter(words_per_minute, how.rate, 0)
        failed |= self._library.espeak_SetParameter(pitch, how.pitch, 0)
        failed |= self._library.espeak_Synth(raw, size, 0, 1, 0, utf8, None, None)
        if failed:
            raise RuntimeError(f"eSpeak NG refuses {how} with {failed}")
        return np.frombuffer(b"".join(self._pieces), np.int16)


# --- the command


@dataclass(frozen=True)
class Speak:
    """Speak the lines of a text, over and over, in many voices."""

    text: tyro.conf.Positional[Path]
    """UTF-8 text file, an utterance a line; blank lines are skipped."""
    out: Path
    """Folder to write; train on it with --data.path."""
    clips: int
    """How many to make; beyond the last line it goes on with the first."""
    seed: int = 1337
    """Of the voices."""


def main(argv: list[str]) -> None:
    with exit_codes():
        command = parse_command(Speak, argv, "python -m gptjax.espeak")
        try:
            lines = command.text.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{command.text} cannot be read ({error}); name a UTF-8 text") from None
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise UserError(f"{command.text} has no lines to speak; name a UTF-8 text")
        make(texts, command.clips, command.seed, command.out)
        seconds = json.loads((command.out / "made.json").read_text())["seconds"]
        print(
            f"{command.out}: {command.clips:,} clips, {seconds / 60:.1f} minutes of "
            f"{min(len(texts), command.clips):,} texts; train with --data.path {command.out}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
