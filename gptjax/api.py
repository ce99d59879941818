"""gptjax from Python, for notebooks and scripts.

Bad input raises UserError, with the message that the command prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax import config_json, models, train
from gptjax.command_line import parse
from gptjax.config import Config
from gptjax.config_checks import require
from gptjax.config_files import load_file
from gptjax.data import audio
from gptjax.data.texts import whole_split
from gptjax.decoding import attention_weights, beam_search, sampling, transcription
from gptjax.decoding.continuation import Continuation
from gptjax.decoding.transcription import Transcript
from gptjax.ensemble import one_model
from gptjax.errors import Interrupted, UserError
from gptjax.evaluation import make_evaluate
from gptjax.models import EncoderDecoder, Model, SpeechRecognizer
from gptjax.runs import checkpoints, run_directory
from gptjax.runs.stop_signal import StopSignal
from gptjax.scale import devices, memory
from gptjax.setup import set_up


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, loaded. Its parts can be used by themselves, too:

    logits_BTV, _ = run.model.apply({"params": run.params}, tokens_BT)
    """

    folder: Path
    config: Config
    tokenizer: Any
    model: Model
    params: Any
    step: int
    """Of the checkpoint."""

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 1337,
        stop: str = "",
    ) -> str:
        """The prompt and its continuation, as `gptjax sample` prints them.

        Ends at the token that ends a text, before `stop`, or after max_new_tokens.
        """
        return "".join(self.stream(prompt, max_new_tokens, temperature, top_k, top_p, seed, stop))

    def stream(
        self,
        prompt: str = "",
        max_new_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 1337,
        stop: str = "",
    ) -> Iterator[str]:
        """What `generate` returns, in pieces, while it is made."""
        tok = self._need("a language model", "generate")
        sampler = sampling.Sampler(temperature, top_k, top_p)
        sampler.check(tok.vocab_size)
        require(max_new_tokens >= 1, "max-new-tokens", max_new_tokens, "at least 1")
        ids = tok.encode(prompt) if prompt else np.array([tok.start], np.int32)
        shown = Continuation(tok, ids if prompt else ids[:0], tok.ends, stop)
        yield shown.prompt
        for piece in sampling.generate(
            self.model, self.params, ids[None], max_new_tokens, sampler, seed
        ):
            yield shown.add(piece[0])
            if shown.is_complete:
                break
        yield shown.rest()

    def loss(self, text: str) -> float:
        """Nats per token of a text: the mean of -log p of every token after the first.

        Cut into windows of block_size tokens, as in `gptjax evaluate`.
        """
        ids = self._need("a language model", "loss").encode(text)
        require(len(ids) >= 2, "text", text[:40], "at least 2 tokens")
        return make_evaluate(self.model)(
            self.params, whole_split(ids, self.config.model.block_size, batch_size=8)
        )

    def attention(self, text: str) -> np.ndarray:
        """Weights (layer, head, T, T) of a text of T tokens; row t: what position t attends to.

        Those of an ensemble's first member.
        """
        ids = self._need("a language model", "attention").encode(text)
        block_size = self.config.model.block_size
        require(1 <= len(ids) <= block_size, "text", f"of {len(ids)} tokens", f"1 to {block_size}")
        if isinstance(one_model(self.model), models.Bigram):
            raise UserError("a bigram has no attention")
        return attention_weights.self_attention(self.model, self.params, ids)  # pyright: ignore

    def transduce(self, source: str, beam: int = 1) -> str:
        """The target of a source, as `gptjax sample --source` prints it."""
        tok = self._need("an encoder-decoder", "transduce")
        beam_search.check(beam, 1.0)
        ((best, *_),) = beam_search.transduce(self.model, self.params, tok, [source], beam, 1.0)  # pyright: ignore
        return best.text

    def transcribe(self, recording: str | Path | np.ndarray, beam: int = 1) -> Transcript:
        """Text and word times of an audio file, or of samples (N,), float, 16 kHz, in [-1, 1]."""
        tok = self._need("a speech recognizer", "transcribe")
        beam_search.check(beam, 1.0)
        is_samples = isinstance(recording, np.ndarray)
        samples_N = recording if is_samples else audio.read(Path(recording))
        (found,) = transcription.transcribe(self.model, self.params, tok, [samples_N], beam, 1.0)  # pyright: ignore
        return found

    def _need(self, kind: str, method: str) -> Any:
        """The tokenizer. Raises UserError if the run is not of this kind."""
        kinds = {EncoderDecoder: "an encoder-decoder", SpeechRecognizer: "a speech recognizer"}
        mine = kinds.get(type(one_model(self.model)), "a language model")
        if kind != mine:
            raise UserError(f"{method}() is for {kind}, but {self.folder} is {mine}")
        return self.tokenizer


def load(folder: str | Path, step: str | int = "best") -> Run:
    """A run directory, ready to use. step: "best" (the lowest val_loss), "latest", or a number.

    Raises UserError if the folder is no run, or has no such checkpoint.
    """
    devices.require_backend()
    folder = Path(folder)
    config = run_directory.read_config(folder)
    tokenizer = run_directory.read_tokenizer(folder)
    model = models.of_run(config, tokenizer)
    found, params = checkpoints.load_params(folder, model, str(step))
    return Run(folder, config, tokenizer, model, params, found)


def train_run(
    config: str | Path = "gpt_cpu", run_dir: str | Path | None = None, **fields: Any
) -> Run:
    """Trains as `gptjax train` does, with a progress bar, and returns the finished run.

    config: a file, or the name of a shipped configuration. run_dir: default runs/NAME; a run in it
    is continued. fields: of the configuration, by name (max_steps=200), or with their section where
    two have the name (data__name="espeak").

    Raises UserError for bad input, and KeyboardInterrupt, after saving, when it is stopped.
    """
    known = config_json.flatten(load_file(Path(config)))
    flags = ["--config", str(config)]
    for name, value in fields.items():
        paths = [p for p in known if name in (p.rpartition(".")[2], p.replace(".", "__"))]
        if len(paths) != 1:
            where = f"is in {' and '.join(paths)}" if paths else "is no field of the configuration"
            raise UserError(f"{name} {where}; name one of {', '.join(known)}")
        flag = paths[0].replace("_", "-")
        if isinstance(value, bool):
            section, dot, last = flag.rpartition(".")
            flags.append(f"--{flag}" if value else f"--{section}{dot}no-{last}")
        else:
            flags += [f"--{flag}", str(value)]
    flags += ["--run-dir", str(run_dir)] if run_dir else []
    parsed, launch = parse(flags)
    with run_directory.locked(launch.folder), memory.advice():
        run = set_up(parsed, launch)
        try:
            with StopSignal() as stop:
                train.train(run, stop)
        except Interrupted:
            raise KeyboardInterrupt from None
    return load(launch.folder)
