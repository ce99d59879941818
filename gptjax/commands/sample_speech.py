"""`gptjax sample` for speech recognizers: turns recordings into text with times."""

import json
import sys
from pathlib import Path

import numpy as np

from gptjax.commands.sample_options import Sample
from gptjax.config import Config
from gptjax.data import audio
from gptjax.data.tokenizer import SpeechTokenizer
from gptjax.decoding import attention_maps, beam_search, subtitles, transcription
from gptjax.errors import UserError

# A recording is clipped if more than this share of its samples is louder than this.
CLIPPED, CLIPPED_SHARE = 0.999, 0.001


def transcribe_files(command: Sample, run_config: Config, tok: SpeechTokenizer) -> None:
    """Prints the transcript of every recording, with the time of every word.

    A file that cannot be read is reported, the others are transcribed, and then UserError is
    raised, so the exit code is 2.
    """
    beam_search.check(command.beam, command.length_penalty)
    paths = _audio_files(command.audio)
    command.check_picture(len(paths), "recording", "--audio")
    if command.format != "text" and (len(paths) != 1 or command.json):
        given = "--json" if command.json else f"{len(paths)} recordings"
        raise UserError(f"--format {command.format} is for one recording, not for {given}")
    # A single file is read before the model is loaded, so that an error comes at once.
    read = {path: audio.read_checked(path) for path in paths if len(paths) == 1}
    step, model, params = command.load_model(run_config, tok)
    failed = False
    for first in range(0, len(paths), transcription.BATCH_SIZE):
        clips: list[tuple[Path, np.ndarray]] = []
        for path in paths[first : first + transcription.BATCH_SIZE]:
            try:
                samples_N, note = read[path] if path in read else audio.read_checked(path)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                failed = True
                continue
            clips.append((path, samples_N))
            if note:
                print(f"warning: {note}", file=sys.stderr)
            if (np.abs(samples_N) > CLIPPED).mean() > CLIPPED_SHARE:
                advice = "so expect mistakes; record it at a lower volume"
                print(f"{path} is clipped, {advice}", file=sys.stderr)
        found = transcription.transcribe(
            model, params, tok, [c for _, c in clips], command.beam, command.length_penalty
        )
        for (path, _), transcript in zip(clips, found, strict=True):
            if transcript.looped:
                problem = "the model repeats itself; the transcript was cut off"
                print(f"{path}: {problem}", file=sys.stderr)
            _show_transcript(command, path, transcript, step, len(paths) > 1)
        if command.attention:
            ((path, samples_N),) = clips
            attention_maps.draw_speech(model, params, tok, samples_N, found[0], command.attention)
            print(f"attention: {command.attention}", file=sys.stderr)
    if failed:
        raise UserError("some files could not be read; the others are above")


def _audio_files(given: tuple[Path, ...]) -> list[Path]:
    """The audio files of --audio; those of a folder are sorted by name."""
    if not given:
        raise UserError("--audio is missing; give audio files, folders of them, or - for stdin")
    paths: list[Path] = []
    for path in given:
        found = [path]
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if p.is_file()]
            found = [p for p in files if p.suffix.lower() in audio.SUFFIXES]
            audio.say_left_out(path, sorted(set(files) - set(found)), "no sound")
        if not found:
            raise UserError(f"--audio {path} has no audio files ({' '.join(audio.SUFFIXES)})")
        paths += found
    if paths.count(Path("-")) > 1:
        raise UserError("--audio names - twice, but stdin is one recording; name it once")
    return paths


def _show_transcript(
    command: Sample, path: Path, transcript: transcription.Transcript, step: int, named: bool
) -> None:
    if command.json:
        words = [
            {"text": w.text, "start": round(w.start, 2), "end": round(w.end, 2)}
            for w in transcript.words
        ]
        fields = {"audio": str(path), "text": transcript.text, "words": words}
        fields |= {"seconds": round(transcript.seconds, 3), "step": step}
        print(json.dumps(fields, ensure_ascii=False), flush=True)
        return
    if command.format != "text":
        print(subtitles.subtitles(transcript.words, command.format), end="")
        return
    print(f"{path}\t" * named + transcript.text)
    for word in transcript.words:
        print(f"  {word.start:7.2f} {word.end:7.2f}  {word.text}")
