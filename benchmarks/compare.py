"""Compares gptjax with PyTorch: do both compute the same, and how fast are they?

    python -m benchmarks.compare parity --config configs/gpt.py
    python -m benchmarks.compare race   --config configs/gpt.py --train.batch-size 16
    python -m benchmarks.compare train  --config configs/gpt.py --recipe configs/gpt_cpu.py ...
    python -m benchmarks.compare sample --config configs/gpt.py

Options of train.py override the config. --json FILE keeps the figures, with a plot next to it.
parity exits with 1 if a difference exceeds its bound. Needs pip install -e '.[torch]'.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path

from gptjax.command_line import parse
from gptjax.config_checks import check
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.config_files import load_file
from gptjax.errors import UserError, exit_codes

PARTS = {"parity": "parity", "race": "race", "train": "quality", "sample": "decode"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of race and sample")
    parser.add_argument("--tokens", type=int, default=256, help="tokens per sequence of sample")
    parser.add_argument(
        "--recipe",
        type=Path,
        action="append",
        default=[],
        help="for train: one more config, a curve of gptjax alone",
    )
    arguments, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    with exit_codes():
        if arguments.rounds < 1 or arguments.tokens < 1:
            raise UserError("--rounds and --tokens must be at least 1")
        if importlib.util.find_spec("torch") is None:
            raise UserError("PyTorch is not installed; pip install -e '.[torch]'")
        config, _ = parse(rest)
        if isinstance(config.model, EncoderDecoderConfig | SpeechConfig):
            raise UserError(
                "this compares language models only; tests/test_encoder_decoder.py compares an "
                "encoder-decoder with torch.nn.Transformer"
            )
        for recipe in arguments.recipe:
            check(load_file(recipe))  # refused before anything is measured
        if arguments.json:
            check_writable(arguments.json)
        part = importlib.import_module(f"benchmarks.{PARTS[arguments.part]}")
        record = part.measure(config, arguments)
        record["command"] = "python -m benchmarks.compare " + " ".join(argv or sys.argv[1:])
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")
            if hasattr(part, "plot"):
                part.plot(record, arguments.json.with_suffix(".png"))
        print(part.table(record))
        if record.get("passed") is False:
            sys.exit(1)


def check_writable(path: Path) -> None:
    """Raises UserError, before anything is measured, if FILE of --json cannot be written."""
    if path.suffix != ".json":
        raise UserError(f"--json {path} must end in .json")
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    main()
