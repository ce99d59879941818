"""gptjax import: a checkpoint that Hugging Face saved, as a run."""

import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gptjax import models
from gptjax.command_line import parse_command, program
from gptjax.errors import UserError, exit_codes
from gptjax.interop import gpt2, whisper
from gptjax.runs import checkpoints, run_directory


@dataclass(frozen=True)
class GPT2:
    """Turn a GPT-2 checkpoint of Hugging Face into a run.

    It has no optimizer state, so training cannot continue it. A new run can start from its weights
    with --train.init-from RUN.

    examples:
        gptjax import gpt2 gpt2/ --out runs/gpt2
    """

    path: tyro.conf.Positional[Path]
    """Folder with config.json, model.safetensors (or shards of it) and tokenizer.json (or
    vocab.json and merges.txt)."""
    out: Path
    """Run directory to make."""


@dataclass(frozen=True)
class Whisper:
    """Turn a Whisper checkpoint of Hugging Face into a run.

    It has no optimizer state, so training cannot continue it. A new run can start from its weights
    with --train.init-from RUN.

    examples:
        gptjax import whisper tiny/ --out runs/tiny --language de
    """

    path: tyro.conf.Positional[Path]
    """Folder with config.json, model.safetensors (or shards of it) and tokenizer.json."""
    out: Path
    """Run directory to make."""
    language: str = "en"
    """Spoken language, as Whisper abbreviates it. For multilingual checkpoints."""


Import: Any = (
    Annotated[GPT2, tyro.conf.subcommand("gpt2")]
    | Annotated[Whisper, tyro.conf.subcommand("whisper")]
)


def main(argv: list[str]) -> None:
    with exit_codes():
        import_model(parse_command(Import, argv, "gptjax import"))


def import_model(command: GPT2 | Whisper) -> None:
    """Makes the run, whole or not at all. Raises UserError for what cannot be imported."""
    folder, out = command.path, command.out
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one with config.json and model.safetensors")
    with ExitStack() as stack:
        part = stack.enter_context(run_directory.new_run(out))
        if isinstance(command, GPT2):
            read, flag = gpt2.read(folder, stack), "--prompt TEXT"
        else:
            read, flag = whisper.read(folder, stack, command.language), "--audio FILE"
        origin = f"no data: weights imported from {folder.resolve()}"
        data = {"source": origin, "sha256": read.sha256}
        checkpoints.save_finished(part, read.config, read.tokenizer, read.params, data)
    call = f"{program()} sample {shlex.quote(str(out))} {flag}"
    print(f"{models.count(read.params):,} parameters in {out}; try: {call}")
