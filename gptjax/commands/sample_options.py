"""The options of `gptjax sample`, and what its three kinds of models share."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from gptjax import models, reading
from gptjax.atomic import require_writable
from gptjax.config import Config
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import UserError
from gptjax.runs import checkpoints

MOST_BYTES = 1 << 28
"""Of a file with a prompt or with sources."""


@dataclass(frozen=True)
class Sample:
    """Generate text with a trained model.

    A language model continues a prompt, a sequence-to-sequence model turns a source into a target,
    and a speech recognizer turns recordings into text with times.

    examples:
        gptjax sample runs/gpt_cpu --prompt "ROMEO:" --temperature 0.8 --top-k 40
        gptjax sample runs/g2p_cpu --source "transformer"
        gptjax sample runs/digits_cpu --audio one.wav two.flac folder
    """

    run: tyro.conf.Positional[Path]
    """Run directory of gptjax train."""
    step: str = "best"
    """Checkpoint to load: best, latest or a step."""
    interactive: bool = False
    """Read prompts or sources line by line, until /quit or Ctrl-D. /help lists the commands."""
    json: bool = False
    """Print one JSON object per sample, source or recording instead of text."""
    attention: Path | None = None
    """Draw the attention weights to a .png, .svg or .pdf: every head of a language model on the
    prompt, or the cross-attention to one source or recording."""

    # --- language models

    prompt: str = ""
    """Text to continue. Empty: the tokenizer's start token, a line break for characters."""
    prompt_file: Path | None = None
    """Read the prompt from a UTF-8 file instead."""
    max_new_tokens: int = 500
    """Number of tokens to generate."""
    stop: str = ""
    """End a continuation before this text."""
    ignore_eos: bool = False
    """Go on after the token that ends a text, such as GPT-2's <|endoftext|>."""
    temperature: float = 0.8
    """The logits are divided by this. Below 1: more predictable. 0: greedy."""
    top_k: int = 0
    """Sample from the k most likely tokens. 0: from all."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that has this total probability."""
    greedy: bool = False
    """Always take the most likely token."""
    num_samples: int = 1
    """Number of continuations, generated as one batch."""
    seed: int | None = None
    """The same seed gives the same text. Default: 1337; in --interactive a new one each time."""
    exact_window: bool = False
    """Past the context, process the whole window again for every token, as nanoGPT does. Slow."""
    stream: bool = True
    """Print text while it is generated."""

    # --- sequence to sequence

    source: str = ""
    """Source to turn into a target."""
    source_file: Path | None = None
    """A UTF-8 file of sources, one a line; - is stdin."""
    beam: int = 1
    """Number of hypotheses that beam search keeps. 1: greedy."""
    n_best: int = 1
    """Number of hypotheses to print, with their scores."""
    length_penalty: float = 1.0
    """Hypotheses are ranked by log-probability / length ** this."""

    # --- speech

    audio: tuple[Path, ...] = ()
    """Audio files or folders of them. - is stdin."""
    format: Literal["text", "srt", "vtt"] = "text"
    """Of the transcript of one recording: text with the time of each word, or subtitles."""

    def load_model(self, run_config: Config, tok: Tokenizer) -> tuple[int, Any, Any]:
        """(step, model, parameters). Prints run, step and size on stderr, unless --json."""
        model = models.of_run(run_config, tok)
        step, params = checkpoints.load_params(self.run, model, self.step)
        if not self.json:
            print(f"{self.run} step {step}, {models.count(params):,} parameters", file=sys.stderr)
        return step, model, params

    def check_picture(self, n_inputs: int, kind: str, flag: str) -> None:
        """Raises UserError if --attention cannot be written or does not have exactly one input."""
        path = self.attention
        if path is None:
            return
        if n_inputs != 1:
            raise UserError(f"--attention draws one {kind}, not {n_inputs}; give one {flag}")
        if path.suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"--attention {path} must end in .png, .svg or .pdf")
        require_writable("--attention", path)


def read_text(flag: str, path: Path) -> str:
    """The text of a UTF-8 file; - is stdin. Raises UserError if it cannot be read."""
    try:
        if path == Path("-"):
            return reading.read_stream(sys.stdin.buffer, MOST_BYTES).decode("utf-8-sig")
        return reading.read_bytes(path, MOST_BYTES, pipe=True).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path} is not UTF-8 at byte offset {error.start}") from None
