"""Sample from a trained run.

    python sample.py runs/gpt_cpu --prompt "ROMEO:" --temperature 0.8 --top-k 40
    python sample.py runs/g2p_cpu --source "transformer"
    python sample.py runs/digits_cpu --audio one.wav two.flac folder

A language model continues a prompt: text streams as it is made; several samples are printed one
after the other. A sequence-to-sequence model turns sources into targets, a speech recognizer sound
into text. --help lists every option.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from gptjax import command_line, models
from gptjax.config import BigramConfig, Config
from gptjax.data import audio
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer, TextTokenizer, Tokenizer
from gptjax.decoding import alignment, sampling, search, transcribe
from gptjax.errors import UserError, exit_codes
from gptjax.models import EncoderDecoder
from gptjax.runs import checkpoints, run_directory
from gptjax.scale import devices


@dataclass(frozen=True)
class Sample:
    """Continue a prompt, turn a source into a target, or sound into text, with a trained model."""

    run: tyro.conf.Positional[Path]
    """Run directory that train.py made."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""
    interactive: bool = False
    """Ask for prompts or sources, one a line, until Ctrl-D."""
    json: bool = False
    """Print one JSON object per sample or source instead of text."""
    attention: Path | None = None
    """Draw what attention looks at, a .png, .svg or .pdf: each head of a language model in the
    prompt, or cross-attention in one source or sound."""

    # --- language models

    prompt: str = ""
    """Text to continue. Empty: the tokenizer's start token, a line break for characters."""
    prompt_file: Path | None = None
    """Read the prompt from a UTF-8 file instead."""
    max_new_tokens: int = 500
    """Tokens to make."""
    temperature: float = 0.8
    """Below 1 is more careful, above more adventurous; 0 is greedy."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0 from all."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together reach this probability."""
    greedy: bool = False
    """Always take the most likely token."""
    num_samples: int = 1
    """How many continuations, made side by side as one batch."""
    seed: int = 1337
    """The same seed gives the same text."""
    exact_window: bool = False
    """Past the context, re-read all of it for every token, as nanoGPT does. Slow."""
    stream: bool = True
    """Print text as it is made."""

    # --- sequence to sequence

    source: str = ""
    """What to turn into a target."""
    source_file: Path | None = None
    """A UTF-8 file of sources, one a line; - is stdin."""
    beam: int = 1
    """Targets that beam search keeps; 1 is greedy."""
    n_best: int = 1
    """How many of them to print, with their scores."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / length ** this."""

    # --- speech

    audio: tuple[Path, ...] = ()
    """Sound files, or folders of them; - is one on stdin."""


SPEECH_ONLY = ("audio",)
PAIRS_ONLY = ("source", "source_file", "n_best")
ENCODER_DECODER_ONLY = ("beam", "length_penalty")
LANGUAGE_MODEL_ONLY = ("prompt", "prompt_file", "max_new_tokens", "temperature", "top_k", "top_p")
LANGUAGE_MODEL_ONLY += ("greedy", "num_samples", "exact_window")
# Of --attention in a text: more tokens than that would be too small to read.
MOST_DRAWN = 48


def main(argv: list[str] | None = None) -> None:
    with exit_codes():
        arguments = sys.argv[1:] if argv is None else argv
        sample(command_line.parse_command(Sample, arguments, "sample.py"))


def sample(command: Sample) -> None:
    """Raises UserError for a folder that is no run, a bad prompt or an option out of range."""
    devices.require_backend()
    run_config = run_directory.read_config(command.run)
    tok = run_directory.read_tokenizer(command.run)
    if isinstance(tok, PairTokenizer):
        others = LANGUAGE_MODEL_ONLY + SPEECH_ONLY
        _refuse(command, others, "turns sources into targets; give it --source")
        transduce(command, run_config, tok)
    elif isinstance(tok, SpeechTokenizer):
        others = (*LANGUAGE_MODEL_ONLY, *PAIRS_ONLY, "interactive")
        _refuse(command, others, "turns sound into text; give it --audio")
        listen(command, run_config, tok)
    else:
        others = SPEECH_ONLY + PAIRS_ONLY + ENCODER_DECODER_ONLY
        _refuse(command, others, "is a language model; give it --prompt")
        write(command, run_config, tok)


def _refuse(command: Sample, options: tuple[str, ...], why: str) -> None:
    """Raises UserError for an option that the model has no use for."""
    for name in options:
        if getattr(command, name) != getattr(Sample, name):
            raise UserError(f"--{name.replace('_', '-')} is not for {command.run}, which {why}")


def _load(command: Sample, run_config: Config, tok: Tokenizer) -> tuple[int, Any, Any]:
    """(step, model, parameters); says which on stderr."""
    model = models.build(run_config.model, tok, devices.compute_dtype(run_config.train))
    step, params = checkpoints.load_params(command.run, model, command.step)
    if not command.json:
        print(f"{command.run} step {step}, {models.count(params):,} parameters", file=sys.stderr)
    return step, model, params


def _converse(command: Sample, name: str, answer: Callable[[str], None]) -> None:
    """Answers line by line until Ctrl-D; a line that is refused does not end it."""
    while True:
        try:
            line = input("" if command.json else f"{name}> ").replace("\\n", "\n")
        except (EOFError, KeyboardInterrupt):
            if not command.json:
                print()
            return
        except UnicodeDecodeError as error:
            print(f"error: the {name} is not UTF-8 at byte {error.start}", file=sys.stderr)
            continue
        try:
            answer(line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


# --- sequence to sequence


def transduce(command: Sample, run_config: Config, tok: PairTokenizer) -> None:
    """Prints the target of every source."""
    search.check(command.beam, command.length_penalty)
    if not 1 <= command.n_best <= command.beam:
        raise UserError(f"--n-best is {command.n_best}, but must be in [1, --beam {command.beam}]")
    sources = [] if command.interactive else _read_sources(command)
    if command.attention:
        if len(sources) != 1:
            raise UserError(f"--attention draws one source, not {len(sources)}; give one --source")
        _check_picture(command.attention)
    longest = run_config.model.source_block_size  # pyright: ignore[reportAttributeAccessIssue]
    for source in sources:  # refused before the model is loaded
        tok.encode_source(source, longest)
    step, model, params = _load(command, run_config, tok)

    def answer(sources: list[str]) -> None:
        found = search.transduce(model, params, tok, sources, command.beam, command.length_penalty)
        for source, beams in zip(sources, found, strict=True):
            best = beams[: command.n_best]
            if command.json:
                print(_as_json(source, best, step))
                continue
            for hypothesis in best:
                shown = [source] if len(sources) > 1 else []
                if command.n_best > 1:
                    shown.append(f"{hypothesis.score:.4f}")
                print("\t".join([*shown, hypothesis.text]))
        if command.attention:
            _draw_attention(command.attention, model, params, tok, sources[0], found[0][0])

    if command.interactive:
        _converse(command, "source", lambda line: answer([line]))
    else:
        answer(sources)


def _check_picture(path: Path) -> None:
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--attention {path} must end in .png, .svg or .pdf")
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"--attention {path} must be a file in a folder there is")


def _read_sources(command: Sample) -> list[str]:
    if command.source_file is None:
        if not command.source:
            raise UserError("--source is missing; give one, or --source-file FILE")
        return [command.source]
    if command.source:
        raise UserError("--source and --source-file are two inputs; give one")
    text = _read_text("--source-file", command.source_file)
    sources = [line.strip() for line in text.splitlines() if line.strip()]
    if not sources:
        raise UserError(f"--source-file {command.source_file} has no sources, one a line")
    return sources


def _as_json(source: str, best: list[search.Hypothesis], step: int) -> str:
    targets = [
        {"text": h.text, "score": h.score, "log_probability": h.log_probability} for h in best
    ]
    return json.dumps({"source": source, "targets": targets, "step": step}, ensure_ascii=False)


def _draw_attention(
    path: Path,
    model: EncoderDecoder,
    params: Any,
    tok: PairTokenizer,
    source: str,
    best: search.Hypothesis,
) -> None:
    """Draws the mean over layers and heads; a row is where its token was looked for."""
    source_ids = tok.source.encode(source)
    tokens = np.concatenate([[tok.boundary], best.ids])[: model.config.block_size]
    weights = alignment.cross_attention(model, params, source_ids, tokens)
    target = [tok.target.decode([i]) for i in best.ids] + ["end"]
    title = "cross-attention, mean over layers and heads"
    alignment.draw(
        weights.mean((0, 1)),
        [tok.source.decode([i]) for i in source_ids],
        target[: len(tokens)],
        title,
        path,
    )
    print(f"attention: {path}", file=sys.stderr)


# --- speech

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
# Louder than this in more than this share of the samples: the recording was cut off at the top.
CLIPPED, CLIPPED_SHARE = 0.999, 0.001


def listen(command: Sample, run_config: Config, tok: SpeechTokenizer) -> None:
    """Prints what is said in every sound, and when each word of it; a broken file says so.

    A file that cannot be read does not keep the others from being heard; the exit code is 2 then.
    """
    search.check(command.beam, command.length_penalty)
    paths = _sound_files(command.audio)
    if command.attention:
        if len(paths) != 1:
            raise UserError(f"--attention draws one sound, not {len(paths)}; give one --audio")
        _check_picture(command.attention)
    # One sound is refused before the model is loaded; and stdin can be read only once.
    read = {path: audio.read(path) for path in paths if len(paths) == 1}
    step, model, params = _load(command, run_config, tok)
    failed = False
    for first in range(0, len(paths), transcribe.BATCH_SIZE):
        clips: list[tuple[Path, np.ndarray]] = []
        for path in paths[first : first + transcribe.BATCH_SIZE]:
            try:
                samples_N = read[path] if path in read else audio.read(path)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                failed = True
                continue
            clips.append((path, samples_N))
            if (np.abs(samples_N) > CLIPPED).mean() > CLIPPED_SHARE:
                print(f"{path} is clipped: too loud a recording, expect mistakes", file=sys.stderr)
        found = transcribe.transcribe(
            model, params, tok, [c for _, c in clips], command.beam, command.length_penalty
        )
        for (path, _), heard in zip(clips, found, strict=True):
            if heard.looped:
                print(f"{path}: the model repeats itself without end; cut off", file=sys.stderr)
            _show_transcript(command, path, heard, step, len(paths) > 1)
        if command.attention:
            ((path, samples_N),) = clips
            alignment.draw_speech(model, params, tok, samples_N, found[0], command.attention)
            print(f"attention: {command.attention}", file=sys.stderr)
    if failed:
        raise UserError("some files could not be read; the others are above")


def _sound_files(given: tuple[Path, ...]) -> list[Path]:
    """The files that --audio names, those of a folder in the order of their names."""
    if not given:
        raise UserError("--audio is missing; give sound files, folders of them, or - for stdin")
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = [
                p
                for p in sorted(path.rglob("*"))
                if p.suffix.lower() in SOUND_SUFFIXES and p.is_file()
            ]
            if not inside:
                raise UserError(f"--audio {path} has no sound files ({' '.join(SOUND_SUFFIXES)})")
            paths += inside
        else:
            paths.append(path)
    if paths.count(Path("-")) > 1:
        raise UserError("--audio names - twice, but stdin has one sound; name it once")
    return paths


def _show_transcript(
    command: Sample, path: Path, heard: transcribe.Transcript, step: int, named: bool
) -> None:
    if command.json:
        words = [
            {"text": w.text, "start": round(w.start, 2), "end": round(w.end, 2)}
            for w in heard.words
        ]
        fields = {"audio": str(path), "text": heard.text, "words": words}
        fields |= {"seconds": round(heard.seconds, 3), "step": step}
        print(json.dumps(fields, ensure_ascii=False), flush=True)
        return
    print(f"{path}\t" * named + heard.text)
    for word in heard.words:
        print(f"  {word.start:7.2f} {word.end:7.2f}  {word.text}")


# --- language models


def write(command: Sample, run_config: Config, tok: TextTokenizer) -> None:
    """Prints continuations of the prompt."""
    temperature = 0.0 if command.greedy else command.temperature
    sampler = sampling.Sampler(temperature, command.top_k, command.top_p)
    sampler.check(tok.vocab_size)
    for name, value in (
        ("max-new-tokens", command.max_new_tokens),
        ("num-samples", command.num_samples),
    ):
        if value < 1:
            raise UserError(f"--{name} is {value}, but must be at least 1")
    if not 0 <= command.seed < 2**32:
        raise UserError(f"--seed is {command.seed}, but must be in [0, 2**32)")
    prompt = "" if command.interactive else _read_prompt(command)
    ids = _encode(prompt, tok, run_config.model.block_size)  # refused before the model is loaded
    if command.attention:
        _check_picture(command.attention)
        if isinstance(run_config.model, BigramConfig):
            raise UserError(f"--attention is not for {command.run}: a bigram has none")
        if command.interactive:
            raise UserError("--attention draws one --prompt; leave --interactive out")
        most = min(MOST_DRAWN, run_config.model.block_size)
        if not 2 <= len(ids) <= most:
            raise UserError(
                f"--attention draws a prompt of 2 to {most} tokens, not {len(ids)}; give such a "
                "--prompt"
            )
    step, model, params = _load(command, run_config, tok)

    def run(prompt: str, ids: np.ndarray) -> None:
        batch = np.repeat(ids[None], command.num_samples, axis=0)
        pieces = sampling.generate(
            model,
            params,
            batch,
            command.max_new_tokens,
            sampler,
            command.seed,
            command.exact_window,
        )
        _show(command, prompt, step, pieces, tok)

    if command.interactive:
        block_size = run_config.model.block_size
        _converse(command, "prompt", lambda line: run(line, _encode(line, tok, block_size)))
    else:
        run(prompt, ids)
    if command.attention:
        weights = alignment.self_attention(model, params, ids)
        alignment.draw_heads(weights, [tok.decode([i]) for i in ids], command.attention)
        print(f"attention: {command.attention}", file=sys.stderr)


def _read_prompt(command: Sample) -> str:
    if command.prompt_file is None:
        return command.prompt
    if command.prompt:
        raise UserError("--prompt and --prompt-file are two prompts; give one")
    return _read_text("--prompt-file", command.prompt_file)


def _read_text(flag: str, path: Path) -> str:
    """A UTF-8 file's text; - is stdin."""
    try:
        raw = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path} is not UTF-8 at byte offset {error.start}") from None


def _encode(prompt: str, tok: TextTokenizer, block_size: int) -> np.ndarray:
    """Token ids (N,), at least one."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt is not UTF-8 at position {error.start}") from None
    ids = tok.encode(prompt) if prompt else np.array([tok.start], np.int32)
    if len(ids) > block_size:
        print(
            f"the prompt has {len(ids)} tokens; the model reads its last {block_size}",
            file=sys.stderr,
        )
    return ids


def _show(
    command: Sample, prompt: str, step: int, pieces: Iterator[np.ndarray], tok: TextTokenizer
) -> None:
    """Prints what is made: one sample as it comes, several when they are whole."""
    if command.json or command.num_samples > 1 or not command.stream:
        rows = np.concatenate(list(pieces), axis=1)
        for i, row in enumerate(rows):
            text = tok.decode(row)
            if command.json:
                fields = {"prompt": prompt, "text": text, "step": step, "sample": i}
                print(json.dumps(fields, ensure_ascii=False))
            else:
                print(f"--- sample {i + 1} of {len(rows)}\n" * (len(rows) > 1) + prompt + text)
        return
    print(prompt, end="", flush=True)
    ids, shown = [], 0
    for piece in pieces:
        ids.extend(piece[0])
        # A character that needs more bytes than came so far decodes to U+FFFD: wait for the rest.
        text = tok.decode(ids).rstrip("\ufffd")
        print(text[shown:], end="", flush=True)
        shown = len(text)
    print(tok.decode(ids)[shown:])


if __name__ == "__main__":
    main()
