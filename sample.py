"""Sample from a trained run.

    python sample.py runs/gpt_cpu --prompt "ROMEO:" --temperature 0.8 --top-k 40

Text streams as it is made; several samples are printed one after the other. --help lists every
option.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gptjax import checkpoint, config, devices, models, sampling
from gptjax.errors import UserError, exit_codes
from gptjax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """Continue a prompt with a trained model."""

    run: tyro.conf.Positional[Path]
    """Run directory that train.py made."""
    prompt: str = ""
    """Text to continue. Empty: the tokenizer's start token, a line break for characters."""
    prompt_file: Path | None = None
    """Read the prompt from a UTF-8 file instead."""
    interactive: bool = False
    """Ask for prompts, one a line, until Ctrl-D."""
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
    step: str = "best"
    """Which checkpoint: best, latest or a step."""
    exact_window: bool = False
    """Past the context, re-read all of it for every token, as nanoGPT does. Slow."""
    stream: bool = True
    """Print text as it is made."""
    json: bool = False
    """Print one JSON object per sample instead of text."""


def main(argv: list[str] | None = None) -> None:
    with exit_codes():
        arguments = sys.argv[1:] if argv is None else argv
        sample(config.parse_command(Sample, arguments, "sample.py"))


def sample(command: Sample) -> None:
    """Raises UserError for a folder that is no run, a bad prompt or an option out of range."""
    devices.require_backend()
    run_config = checkpoint.read_config(command.run)
    tok = checkpoint.read_tokenizer(command.run)
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

    model = models.build(run_config.model, tok.vocab_size, devices.compute_dtype(run_config.train))
    step, params = checkpoint.load_params(command.run, model, command.step)
    if not command.json:
        print(f"{command.run} step {step}, {models.count(params):,} parameters", file=sys.stderr)

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

    if not command.interactive:
        run(prompt, ids)
    while command.interactive:
        try:
            prompt = input("" if command.json else "prompt> ").replace("\\n", "\n")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            print(f"error: the prompt is not UTF-8 at byte {error.start}", file=sys.stderr)
            continue
        try:
            run(prompt, _encode(prompt, tok, run_config.model.block_size))
        except UserError as error:  # one bad prompt does not end the conversation
            print(f"error: {error}", file=sys.stderr)


def _read_prompt(command: Sample) -> str:
    if command.prompt_file is None:
        return command.prompt
    if command.prompt:
        raise UserError("--prompt and --prompt-file are two prompts; give one")
    try:
        return command.prompt_file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--prompt-file {command.prompt_file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompt-file {command.prompt_file} is not UTF-8 at byte offset {error.start}"
        ) from None


def _encode(prompt: str, tok: Tokenizer, block_size: int) -> np.ndarray:
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
    command: Sample, prompt: str, step: int, pieces: Iterator[np.ndarray], tok: Tokenizer
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
