"""Writes the tables of README.md and docs/ from docs/benchmarks/*.json and benchmarks/plan.py.

python -m benchmarks.tables            # write
python -m benchmarks.tables --check    # change nothing; fail where a file would change
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import (
    ablate,
    decode,
    gpu_tables,
    h100,
    ladders,
    page,
    parity,
    plan,
    quality,
    race,
    scaling,
    speakers,
    sweep,
    verdicts,
)
from benchmarks import task_tables as tasks
from benchmarks.records import FOLDER, load, measured_on, read, shown

OPEN_ON_A_GPU = {
    "parity-gpu": "parity with PyTorch (`python -m benchmarks.compare parity --config "
    "configs/gpt.py --json docs/benchmarks/parity-gpu.json`)",
    "race-gpt-gpu": "milliseconds per step of today's `configs/gpt.py` (`{script} race`)",
    "gpu-startup": "seconds to the first steps, with an empty and a filled compilation cache "
    "(`{script} startup`)",
    "gpu-startup-h100": "start-up on an H100, and on any GPU since all layers share what is traced "
    "(`{script} startup`)",
    "gpu-fast": "seconds to the original's best validation loss, 1.4994 (`{script} fast`)",
    "gpu-best": "whole runs of `gpt_best.py` with three seeds (`{script} best`)",
    "decode-gpu": "tokens per second of sampling, batch 1 and 32 (`{script} sampling`)",
    "race-gpt2-gpu": "a step of `configs/gpt2_124m.py` and its share of the GPU's peak "
    "(`{script} gpt2`)",
    "quant-gpt2-gpu": "decoding with int8 and int4 at GPT-2's size, 124 M parameters, and at the "
    "size of `configs/gpt.py` (`{script} int8`)",
    "expected-g2p": "`configs/g2p.py`: word and phoneme error rates (`{script} g2p`)",
    "expected-digits": "`configs/digits.py`: spoken digits right, word error rate of strings "
    "(`{script} digits`)",
    "quality-gpt-gpu": "the curves of `gpt.py` and the recipes by time (`python -m "
    "benchmarks.compare train`)",
    "ablate-gpu": "the ladder of [recipe.md](recipe.md) at the size of `configs/gpt.py` "
    "(`python -m benchmarks.ablate gpu`)",
    "scaling-weak-data-gpu": "weak and strong scaling over several GPUs, [scaling.md](scaling.md) "
    "(`python -m benchmarks.scaling`)",
}
RACES = {
    "race-gpt-gpu": "configs/gpt.py on a GPU",
    "race-gpt-cpu": "configs/gpt.py, batches of 16, on a CPU",
    "race-small-cpu": "the original's architecture with 4 layers, width 128, block 64, on a CPU",
    "race-gpt_cpu-cpu": "configs/gpt_cpu.py, with AdamW, on a CPU",
}


def comparison(title: str, module: Any, names: dict[str, str], note: str) -> list[str]:
    """A section of benchmarks.md: the tables of those records that exist."""
    lines = [f"## {title}", "", note, ""]
    for name, heading in names.items():
        record = read(name)
        if record is None:
            continue
        lines += [f"### {heading}", "", shown(module.table(record)), "", measured_on(record), ""]
        if (FOLDER / f"{name}.png").exists():
            lines += [f"![{heading}](benchmarks/{name}.png)", ""]
    return lines


def benchmarks_md() -> str:
    lines = [
        "# Benchmarks",
        "",
        "For everyone who compares gptjax with PyTorch, or doubts a figure.",
        "",
        "Made by `python -m benchmarks.tables` from the JSON in [benchmarks/](benchmarks/); do not "
        "edit. Each JSON names its command, date, hardware and versions. To measure on your "
        "machine, in a clone, with `.venv` activated:",
        "",
        "```",
        "pip install -e '.[torch]'",
        "python -m benchmarks.compare parity --config configs/debug.py # a minute or two",
        "```",
        "",
        "At full size each takes much longer on a CPU:",
        "",
        "<!-- walk: long python -m benchmarks.compare -->",
        "```",
        "python -m benchmarks.compare parity --config configs/gpt.py   # is it the same?",
        "python -m benchmarks.compare race --config configs/gpt.py     # ms/step of training",
        "python -m benchmarks.compare sample --config configs/gpt.py   # tokens/s of sampling",
        "python -m benchmarks.compare train --config configs/gpt.py    # val_loss by time",
        "```",
        "",
        "## What the configurations reach",
        "",
        tasks.expected_table("#ready-and-trained-on-a-gpu"),
        "",
        "## On an H100",
        "",
        h100.section(),
        "",
        *gpu_tables.section(),
        "## The first steps of configs/gpt.py, on a CPU",
        "",
        tasks.first_steps_table(),
        "",
    ]
    lines += comparison(
        "Does it compute the same as PyTorch?",
        parity,
        {
            "parity-bigram": "configs/bigram.py",
            "parity-gpt": "configs/gpt.py",
            "parity-gpt_cpu": "configs/gpt_cpu.py, with AdamW",
            "parity-gpu": "configs/gpt.py, on a GPU",
        },
        "Both start from the same weights and read the same batches, in float32, without dropout. "
        "Differences are relative to the largest value of an array. The gradients are those of the "
        "first batch without a ReLU input within 4e-7 of zero, where the derivative jumps.",
    )
    lines += comparison(
        "How fast does it train?",
        race,
        RACES,
        "Every competitor runs in a process of its own, and they take turns, so that a slow minute "
        "affects all of them. All of training is timed except evaluation and checkpoints. FLOP/s "
        "are compared with the fastest matmul, in any dtype, that a competitor reached between the "
        "rounds.",
    )
    lines += comparison(
        "How fast does it learn?",
        quality,
        {
            "quality-gpt-gpu": "configs/gpt.py on a GPU",
            "quality-cpu": "nanoGPT's configuration for a CPU, by both, and the two of gptjax",
        },
        "The first two rows start from the same weights and read the same batches. All train in "
        "one process, one after the other. Seconds include compiling and exclude evaluation. On a "
        "CPU both use float32. Recipes were chosen by the first half of the validation split.",
    )
    lines += comparison(
        "How fast does it write?",
        decode,
        {"decode-gpu": "On a GPU", "decode-cpu": "On a CPU"},
        "Models of the size of configs/gpt.py with random weights. * was too slow to be timed more "
        "than once.",
    )
    lines += ["## How well does it pronounce?", ""]
    for part in ("g2p", "g2p_cpu"):
        if read(f"expected-{part}"):
            lines += [f"### configs/{part}.py", "", tasks.g2p_table(part), "", tasks.PUBLISHED, ""]
            lines += [
                f"Most frequent confusions, reference > hypothesis: {tasks.confusions(part)}.",
                "",
            ]
            lines += [f"![Loss](benchmarks/{part}.png)", ""]
            lines += [f"![Cross-attention](benchmarks/{part}-attention.png)", ""]
    lines += ["## How well does it recognise speech?", ""]
    for part in ("digits", "digits_cpu"):
        if read(f"expected-{part}"):
            lines += [f"### configs/{part}.py", "", tasks.digits_table(part), ""]
            lines += [f"![Loss](benchmarks/{part}.png)", ""]
            lines += [f"![Cross-attention](benchmarks/{part}-attention.png)", ""]
    lines += ["## What does quantization cost?", "", tasks.QUANT, ""]
    for name, title in tasks.CARDS.items():
        if read(f"quant-card-{name}"):
            lines += [f"### {title}", "", tasks.card(name), ""]
        if read(f"quant-kept-{name}"):
            lines += [tasks.KEPT, "", tasks.kept(name), ""]
    for name, title in {
        "quant-seed-cpu": "Decoding at the size of configs/gpt.py, on a CPU",
        "quant-seed-gpu": "Decoding at the size of configs/gpt.py, on a GPU",
        "quant-gpt2-gpu": "Decoding at GPT-2's size, on a GPU",
    }.items():
        if read(name):
            lines += [f"### {title}", "", tasks.quant_decoding(name), ""]
    lines += [tasks.QWIX, ""]
    if saved := read("drills"):
        lines += ["## What does a run survive?", "", tasks.DRILLS_NOTE, "", tasks.drills(), ""]
        lines += [measured_on(saved), ""]
    script = f"{gpu_tables.SCRIPT} --only"
    missing = [
        text.format(script=script) for name, text in OPEN_ON_A_GPU.items() if read(name) is None
    ]
    if missing:
        lines += ["## Open", "", "Not measured on a GPU yet:", ""]
        lines += [*[f"- {text}" for text in missing], ""]
    return "\n".join(lines)


def recipe_md() -> str:
    """What each idea of the recipe gives, and where it comes from."""
    lines = [
        "# The recipe",
        "",
        "For everyone who asks why the loss is low.",
        "",
        "From the configuration of the original PyTorch GPT to `configs/gpt_cpu.py`, one idea per "
        "rung. Every rung keeps the ideas below it. Made by `python -m benchmarks.tables`; do not "
        "edit.",
        "",
    ]
    sections = {
        "ablate-gpu": ("The ladder on a GPU, at the size of configs/gpt.py", "gpu"),
        "ablate-cpu": ("The ladder on two CPU cores", "cpu"),
        "ablate-short": ("When the text repeats", "short"),
        "ablate-10min": ("Ten minutes on two CPU cores", "10min"),
    }
    for name, (heading, which) in sections.items():
        record = read(name)
        if record is None or ablate.missing(record):
            continue
        lines += [
            f"## {heading}",
            "",
            ladders.LADDERS[which].note,
            "",
            shown(ablate.table(record)),
            "",
        ]
        lines += [f"![{heading}](benchmarks/{name}.png)", "", ablate.ideas(which), ""]
        lines += [measured_on(record), ""]
    if record := read("sweep-gpu"):
        lines += ["## Variations on a GPU", "", sweep.NOTE, ""]
        lines += ["![Variations](benchmarks/sweep-gpu.png)", "", *sweep.tables(record)]
        lines += [measured_on(record), ""]
    if "temperatures" in load("expected-gpt_cpu_10min"):
        lines += ["## A model that is too sure", "", tasks.TEMPERATURE_NOTE, ""]
        lines += [tasks.temperature_table(), ""]
    if record := read("sweep-g2p-gpu"):
        lines += ["## Spelling to pronunciation", "", sweep.PAIRS_NOTE, ""]
        lines += [sweep.error_rates(record), "", measured_on(record), ""]
    if record := read("speakers-heads-gpu"):
        lines += ["## Speakers that were never heard", "", speakers.note(record), ""]
        lines += [speakers.results(record), "", measured_on(record), ""]
    if record := read("speakers-gpu"):
        lines += [speakers.former_note(), "", speakers.results(record), "", measured_on(record), ""]
    return "\n".join([*lines, ladders.HOW_IT_WAS_CHOSEN])


def parts() -> dict[str, dict[str, str]]:
    """What stands between the markers of each page: {page: {marker: text}}."""
    sample = load("expected-gpt_cpu")["sample"].strip().splitlines()[:14]
    return {
        "README.md": {
            "sample": "\n".join(["```", *sample, "```"]),
            "race": verdicts.verdicts(),
        },
        "docs/training.md": {
            "expected": tasks.expected_table("benchmarks.md#ready-and-trained-on-a-gpu")
        },
        "docs/devices.md": {
            "h100": f"{h100.verdict()}: [measurements](benchmarks.md{h100.anchor()})."
        },
        "docs/pairs.md": {"g2p": f"{tasks.g2p_table()}\n\n{tasks.PUBLISHED}"},
        "docs/speech.md": {"digits": tasks.digits_table()},
        "docs/quantization.md": {
            "quant": f"Of {tasks.CARDS['gpt_cpu_wide']}:\n\n{tasks.card('gpt_cpu_wide')}"
        },
        "docs/page.md": {"page": made_pages()},
        "docs/scaling.md": {
            "plan-memory": plan.memory_table(),
            "plan-links": plan.links_table(),
            "plan-model": plan.model_axis_table(),
            "plan": plan.plan_table(),
            "simulated": simulated(),
            "scaled": scaled(),
        },
    }


def made_pages() -> str:
    """Size and speed of the pages of `gptjax page`."""
    record = read("page-cpu")
    return (
        "Not measured yet." if record is None else f"{page.table(record)}\n\n{measured_on(record)}"
    )


def simulated() -> str:
    """Bytes and collectives of compiled programs on simulated devices."""
    record = read("scaling-simulated")
    if record is None:
        return "Not counted yet."
    return f"{scaling.simulated_table(record)}\n\n{measured_on(record)}"


def scaled() -> str:
    """Tokens per second on 1, 2, 4 ... devices, along each axis."""
    lines = []
    for axis in scaling.AXES:
        for kind in ("weak", "strong"):
            if record := read(f"scaling-{kind}-{axis}-gpu"):
                lines += [f"{kind.title()} scaling along {axis}:", ""]
                lines += [scaling.measured_table(record), "", measured_on(record), ""]
    return "\n".join(lines).strip() or "Not measured on several GPUs yet."


def filled(text: str, parts: dict[str, str], where: str) -> str:
    """The text with new content between each pair of markers."""
    for name, content in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, n = re.subn(pattern, lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text, flags=re.DOTALL)
        assert n == 1, f"{where} needs one pair of <!-- {name} --> markers"
    return text


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if outdated")
    check = parser.parse_args(argv).check
    pages = {
        Path("docs/benchmarks.md"): benchmarks_md(),
        Path("docs/recipe.md"): recipe_md(),
    }
    for name, of_page in parts().items():
        pages[Path(name)] = filled(Path(name).read_text(), of_page, name)
    for path, text in pages.items():
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} is not what {FOLDER} says; run python -m benchmarks.tables")


if __name__ == "__main__":
    main(sys.argv[1:])
