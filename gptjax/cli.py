"""The command `gptjax`: finds the subcommand and calls its main(argv).

This file imports nothing slow, so that `gptjax --help` answers at once. A subcommand's module is
imported when that subcommand is called. Until it runs, and while training is set up, Ctrl-C and
SIGTERM end the program at once.
"""

import gc
import signal
import sys

from gptjax import __version__
from gptjax.signals import end_at_once

# name: (module with a main(argv), one sentence for --help)
COMMANDS = {
    "train": ("gptjax.train", "Train a model, or continue a run that was stopped."),
    "sample": ("gptjax.commands.sample", "Generate text from a run, or translate or transcribe."),
    "evaluate": ("gptjax.commands.evaluate", "Measure a run on the validation or test split."),
    "quantize": ("gptjax.commands.quantize", "Write a smaller copy of a run: int8 to ternary."),
    "export": ("gptjax.commands.export", "Write a run as Hugging Face, safetensors or StableHLO."),
    "import": ("gptjax.commands.import_model", "Make a run from the weights of GPT-2 or Whisper."),
    "prepare": ("gptjax.commands.prepare", "Tokenize a large text once, for --data.path."),
    "plot": ("gptjax.commands.plot", "Draw the loss curves of several runs in one picture."),
    "page": ("gptjax.commands.page", "Write a run as one HTML page, to try it and look inside."),
    "doctor": ("gptjax.commands.doctor", "Print versions, devices and installation problems."),
}
_LIST = "\n".join(f"  {name:<10}{sentence}" for name, (_, sentence) in COMMANDS.items())
HELP = f"""usage: gptjax [--help] [--version] COMMAND [options]

A GPT from scratch in JAX: train, sample and deploy.

{_LIST}

examples:
  gptjax train --config configs/gpt_cpu.py
  gptjax sample runs/gpt_cpu --prompt "ROMEO:"

gptjax COMMAND --help lists the options of a command."""


def main(argv: list[str] | None = None) -> None:
    """For programs: it decides what signals do (signals.py), and when Python looks for garbage."""
    end_at_once()
    # Importing and tracing make many objects that stay. To search them for garbage after every 700
    # new ones, as Python does by default, takes a fifth of a start.
    gc.set_threshold(20_000)
    import difflib
    import importlib

    from gptjax.errors import UserError, exit_codes

    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with exit_codes():
        if name in ("-h", "--help", "help"):
            print(HELP)
        elif name == "--version":
            print(__version__)
        elif name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise UserError(f"gptjax has no command {name}; {hint}")
        else:
            try:
                command = importlib.import_module(COMMANDS[name][0]).main
            except ModuleNotFoundError as error:
                if (error.name or "gptjax").startswith("gptjax"):
                    raise
                raise UserError(
                    f"this Python ({sys.executable}) lacks the package {error.name}; run `source "
                    ".venv/bin/activate` first, or `make train`, which makes .venv"
                ) from None
            at_once = signal.getsignal(signal.SIGINT)
            if name != "train":  # which has nothing to remove; the others may have a part of a file
                signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                command(rest)
            finally:
                signal.signal(signal.SIGINT, at_once)
