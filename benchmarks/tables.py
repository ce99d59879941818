"""Writes docs/benchmarks.md, and the figures in README.md, from the JSON in docs/benchmarks/.

    python -m benchmarks.tables [--check]

--check changes nothing and fails if a file is not what the JSON says.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path("docs/benchmarks")
SEED_BIGRAM, SEED_GPT_START = 2.4911, 4.4707  # what the original project logged (README)

OPEN_ON_A_GPU = [
    "`configs/gpt.py` to its end: validation loss, steps and seconds to the seed's best, 1.4994",
    "milliseconds per step and tokens per second, float32 and bfloat16",
    "tokens per second of `sample.py`, batch 1 and 32",
]


def load(part: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"expected-{part}.json").read_text())


def expected_table() -> str:
    """What each configuration reaches, and on what it was measured."""
    bigram, gpt_cpu = load("bigram"), load("gpt_cpu")
    rows = [
        "| config | val_loss, whole split | time in all | the original logs |",
        "|---|---|---|---|",
        f"| `bigram.py`, 3,000 steps | {bigram['val_loss']:.4f} | {bigram['seconds']:.0f} s | "
        f"{SEED_BIGRAM} (at step 2,700) |",
        f"| `gpt_cpu.py`, 1,100 steps | {gpt_cpu['val_loss']:.4f} | {gpt_cpu['seconds']:.0f} s | |",
        "| `gpt.py`, 5,000 steps | not measured on a GPU yet | | 1.4994 (sampled, best) |",
    ]
    return "\n".join(rows) + f"\n\nMeasured on {machine(gpt_cpu)}, compiling included."


def machine(record: dict[str, Any]) -> str:
    environment = record["environment"]
    return (
        f"{environment['cpus']} cores of {record['processor']}, jax "
        f"{environment['packages']['jax']}, Python {environment['python']}, {record['date']}"
    )


def first_steps_table() -> str:
    """gptjax and the original over the first 20 steps of configs/gpt.py."""
    record = load("gpt_first_steps")
    ours, theirs = record["train_loss"], record["torch_train_loss"]
    start, end = (e["val_loss"] for e in record["evaluations"])
    rows = ["| step | gptjax | PyTorch original |", "|---|---|---|"]
    rows += [
        f"| {s} | {ours[s]:.4f} | {theirs[s]:.4f} |" for s in ("1", "2", "5", "10", "15", "20")
    ]
    worst = max(abs(ours[s] - theirs[s]) for s in ours)
    return (
        "\n".join(rows)
        + f"\n\nLargest difference of the 20: {worst:.3f} nats. Both start from their own random "
        f"weights of one distribution, so they agree in kind and not in digits. Validation "
        f"loss at step 0: {start:.4f} (the original: {SEED_GPT_START}), at step 20: {end:.4f}."
        f"\n\nMeasured on {machine(record)}, torch {record['torch']}, by "
        "`python -m benchmarks.expected gpt_first_steps`."
    )


def benchmarks_md() -> str:
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks.tables` from the JSON in [benchmarks/](benchmarks/); do not "
        "edit. Each JSON names its command, date, hardware and versions.",
        "",
        "## What the configurations reach",
        "",
        expected_table(),
        "",
        "## The first steps of configs/gpt.py, on a CPU",
        "",
        first_steps_table(),
        "",
        "## Open",
        "",
        "Not measured on a GPU yet:",
        "",
        *[f"- {figure}" for figure in OPEN_ON_A_GPU],
        "",
        "Not measured yet: the race against PyTorch.",
        "",
    ]
    return "\n".join(lines)


def readme(text: str) -> str:
    """README.md with what stands between its markers made anew."""
    sample = "```\n" + "\n".join(load("gpt_cpu")["sample"].strip().splitlines()[:14]) + "\n```"
    for name, content in (("sample", sample), ("expected", expected_table())):
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, n = re.subn(pattern, lambda m, c=content: m[1] + c + m[2], text, flags=re.DOTALL)
        assert n == 1, f"README.md needs one pair of <!-- {name} --> markers"
    return text


def main(argv: list[str]) -> None:
    readme_path = Path("README.md")
    wanted = {
        Path("docs/benchmarks.md"): benchmarks_md(),
        readme_path: readme(readme_path.read_text()),
    }
    for path, text in wanted.items():
        if argv == ["--check"]:
            if not path.exists() or path.read_text() != text:
                sys.exit(f"{path} is not what {FOLDER} says; run python -m benchmarks.tables")
        else:
            path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
