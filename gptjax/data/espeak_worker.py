"""A process that speaks clips with eSpeak NG. It imports no JAX, so it starts quickly."""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from gptjax.errors import UserError, exit_codes, import_extra

NEEDS = "synthetic speech needs"

# Constants of espeak-ng/speak_lib.h.
_SYNCHRONOUS, _RATE, _PITCH, _UTF8, _CHARACTERS = 2, 1, 3, 1, 1


def main() -> None:
    """Speaks the rows of a request on stdin into WAV files."""
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
