"""Weights that others trained, as a run that sample.py can use.

    python -m gptjax.importers gpt2 PATH --out RUN
    python -m gptjax.importers whisper PATH --out RUN [--language en]

gpt2: OpenAI's language model, and those of its architecture. whisper: its speech recognizer.

PATH is a folder as Hugging Face saves it: config.json, model.safetensors or shards of it, and
tokenizer.json (or, of GPT-2, vocab.json and merges.txt). An imported run has no optimizer state, so
train.py cannot continue it; a new run can start from it with --train.init-from RUN.
"""

import sys
from collections.abc import Callable
from typing import Any

from gptjax.command_line import parse_command
from gptjax.errors import UserError, exit_codes
from gptjax.interop.gpt2 import GPT2, import_gpt2
from gptjax.interop.whisper import Whisper, import_whisper

IMPORTERS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "gpt2": (GPT2, import_gpt2),
    "whisper": (Whisper, import_whisper),
}


def main(argv: list[str]) -> None:
    with exit_codes():
        kind, arguments = (argv or [""])[0], argv[1:]
        if kind in ("-h", "--help"):
            print(__doc__)
        elif kind not in IMPORTERS:
            known = "|".join(IMPORTERS)
            raise UserError(f"usage: python -m gptjax.importers {known} PATH --out RUN")
        else:
            cls, do = IMPORTERS[kind]
            do(parse_command(cls, arguments, f"python -m gptjax.importers {kind}"))


if __name__ == "__main__":
    main(sys.argv[1:])
