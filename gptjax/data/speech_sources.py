"""Where the recordings of a configuration come from: a folder, a download, or eSpeak's voices."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from gptjax.config_encoders import SpeechDataConfig
from gptjax.data import audio, downloads, espeak, recordings
from gptjax.data.recordings import Clip
from gptjax.errors import UserError


def find(c: SpeechDataConfig) -> Path:
    """The folder or manifest of a configuration's clips; downloads or synthesizes them."""
    if c.name == "espeak":
        path = c.path or downloads.fetch("tinyshakespeare")
        content = recordings.read_transcripts(path)
        lines = [line.strip() for line in content.split("\n") if line.strip()]
        return _spoken(lines, c.synthetic_clips, espeak.SAMPLE_RATE)
    if c.path:
        return c.path
    if c.name == "fsdd":
        return downloads.fetch_fsdd()
    raise UserError(
        "LibriSpeech is too large to fetch unasked; unpack train-clean-100 and dev-clean of "
        "openslr.org/12 in a folder and name that with --data.path"
    )


def extra_voices(clips: Sequence[Clip], n_clips: int) -> list[Clip]:
    """n_clips in which eSpeak's voices read the texts of these clips, at their sample rate."""
    folder = _spoken(
        sorted({clip.text for clip in clips}), n_clips, audio.sample_rate(clips[0].path)
    )
    return [clip._replace(split="train") for clip in recordings.find_clips(folder)]


def _spoken(texts: Iterable[str], n_clips: int, rate: int) -> Path:
    """A folder of the cache with eSpeak's recordings of these texts."""
    what = [list(texts), n_clips] if rate == espeak.SAMPLE_RATE else [list(texts), n_clips, rate]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    folder = downloads.cache() / "espeak" / digest[:16]
    return espeak.make(what[0], n_clips, 0, folder, rate=rate).parent
