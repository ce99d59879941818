"""Sound that libsndfile does not read, such as m4a and webm: through PyAV, else through ffmpeg."""

import importlib
import shutil
import subprocess
from pathlib import Path
from typing import IO

import numpy as np

from gptjax.errors import UserError

MOST_SAMPLES = 1 << 28
"""Of a channel: a short file could hold years of silence. 4.6 hours at 16 kHz."""
RATE = 16_000
"""Of what ffmpeg returns, in Hz."""


class Unreadable(Exception):
    """Neither can read it; the message says why, or what to install."""


def decode(path: Path, file: IO[bytes]) -> tuple[np.ndarray, int, float]:
    """The samples (N, C), float32, their rate, and the seconds that the header promises, or 0.

    path: of the file; it need not exist if PyAV is installed. Raises Unreadable, and UserError for
    a sound of more than MOST_SAMPLES.
    """
    # A playlist is a text, and names other files and addresses.
    head = file.read(1024)
    file.seek(0)
    if head and b"\0" not in head and head.decode("utf-8", "ignore").encode()[:1000] == head[:1000]:
        raise Unreadable("it is a text")
    try:
        av = importlib.import_module("av")
    except ImportError:
        if path.is_file() and (program := shutil.which("ffmpeg")):
            return _by_ffmpeg(program, path)
        raise Unreadable("for m4a, webm and others: pip install av, or install ffmpeg") from None
    parts, n_samples = [], 0
    try:
        with av.open(file, options={"protocol_whitelist": "none"}) as container:
            stream = container.streams.audio[0]
            promised = float(container.duration or 0) / av.time_base
            resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
            for frame in [*container.decode(stream), None]:
                for part in resampler.resample(frame):
                    parts.append(part.to_ndarray().reshape(-1, 1))
                    n_samples += len(parts[-1])
                    if n_samples > MOST_SAMPLES:
                        raise _too_long(path)
            return np.concatenate(parts), stream.rate, promised
    except (av.FFmpegError, IndexError, ValueError) as error:  # IndexError: no sound in it
        raise Unreadable(getattr(error, "strerror", None) or "no sound in it") from None


def _by_ffmpeg(program: str, path: Path) -> tuple[np.ndarray, int, float]:
    command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file"]
    command += ["-i", f"file:{path.absolute()}", "-vn", "-t", str(MOST_SAMPLES // RATE + 1)]
    command += ["-f", "f32le", "-ac", "1", "-ar", str(RATE), "pipe:1"]
    done = subprocess.run(command, capture_output=True, check=False)
    samples_N1 = np.frombuffer(done.stdout, np.float32).reshape(-1, 1)
    if len(samples_N1) > MOST_SAMPLES:
        raise _too_long(path)
    if done.returncode or not len(samples_N1):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unreadable(lines[-1] if lines else "no sound in it")
    return samples_N1, RATE, 0.0


def _too_long(path: Path) -> UserError:
    return UserError(f"{path} is longer than {MOST_SAMPLES:,} samples; cut it")
