"""Writes the figures of README.md and docs/ from docs/benchmarks/*.json and benchmarks/plan.py.

    python -m benchmarks.tables [--check]

--check changes nothing and fails if a file is not what the JSON says.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import ablate, decode, ladders, parity, plan, quality, race, scaling
from gptjax.commands.quantize import STEPS, slower

FOLDER = Path("docs/benchmarks")
SEED_BIGRAM, SEED_GPT_START = 2.4911, 4.4707  # what the original project logged (README)

PUBLISHED = (
    "Published full-size Transformers, without stress: WER 30.2 % on the latest CMUdict, 20.6 to "
    "22.1 % (PER 5.2 %) on an older and cleaner split. Other splits, so compare with care."
)

TEN_MINUTES = "gptjax, configs/gpt_cpu_10min.py"

OPEN_ON_A_GPU = {
    "parity-gpu": "parity with PyTorch (`benchmarks/gpu.sh parity`)",
    "race-gpt-gpu": "milliseconds per step, float32 and bfloat16, against PyTorch eager, compiled "
    "and with CUDA graphs (`benchmarks/gpu.sh race`)",
    "decode-gpu": "tokens per second of sampling, batch 1 and 32 (`benchmarks/gpu.sh decode`)",
    "quality-gpt-gpu": "`configs/gpt.py` against `gpt_fast.py` and `gpt_best.py`: validation loss, "
    "steps and seconds to the seed's best, 1.4994 (`benchmarks/gpu.sh recipe`)",
    "expected-g2p": "`configs/g2p.py`: word and phoneme error rates (`benchmarks/gpu.sh g2p`)",
    "expected-digits": "`configs/digits.py`: spoken digits right, word error rate of strings "
    "(`benchmarks/gpu.sh digits`)",
    "quant-gpt2-gpu": "decoding with int8 and int4 at GPT-2's size, 124 M parameters, and the "
    "seed's (`benchmarks/gpu.sh quant`)",
    "ablate-gpu": "the ladder of [recipe.md](recipe.md) at the seed's size (`benchmarks/gpu.sh "
    "ablate`)",
    "scaling-weak-data-gpu": "weak and strong scaling over several GPUs, [scaling.md](scaling.md) "
    "(`benchmarks/gpu.sh scaling`)",
}

RACES = {
    "race-gpt-gpu": "configs/gpt.py on a GPU",
    "race-gpt-cpu": "configs/gpt.py, batches of 16, on a CPU",
    "race-small-cpu": "the seed's architecture with 4 layers, width 128, block 64, on a CPU",
    "race-gpt_cpu-cpu": "configs/gpt_cpu.py, with AdamW, on a CPU",
}


def load(part: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"expected-{part}.json").read_text())


def expected_table() -> str:
    """What each configuration reaches, and on what it was measured."""
    bigram, gpt_cpu = load("bigram"), load("gpt_cpu")
    ten_minutes = json.loads((FOLDER / "quality-cpu.json").read_text())["curves"][TEN_MINUTES]
    rows = [
        "| config | val_loss, whole split | time in all | the original logs |",
        "|---|---|---|---|",
        f"| `bigram.py`, 3,000 steps | {bigram['val_loss']:.4f} | {bigram['seconds']:.0f} s | "
        f"{SEED_BIGRAM} (at step 2,700) |",
        f"| `gpt_cpu.py`, {gpt_cpu['evaluations'][-1]['step']:,} steps | "
        f"{gpt_cpu['val_loss']:.4f} | {gpt_cpu['seconds']:.0f} s | |",
        f"| `gpt_cpu_10min.py`, {ten_minutes['step'][-1]:,} steps | "
        f"{ten_minutes['val_loss'][-1]:.4f} | {ten_minutes['wall_seconds'][-1]:.0f} s | |",
        "| `gpt.py`, 5,000 steps | not measured on a GPU yet | | 1.4994 (sampled, best) |",
        "| `gpt_fast.py`, 500 steps | not measured on a GPU yet | | |",
        "| `gpt_best.py`, 3,000 steps | not measured on a GPU yet | | |",
    ]
    where = f"Measured on {machine(gpt_cpu)}, compiling included"
    return "\n".join(rows) + f"\n\n{where}; `gpt_cpu_10min.py` in the race of the recipes."


def g2p_table(part: str = "g2p_cpu") -> str:
    """Error rates of grapheme-to-phoneme conversion, next to what was published."""
    record = load(part)
    rows = [
        "| | parameters | WER, any variant | PER, any variant | WER, first variant | PER, first |",
        "|---|---|---|---|---|---|",
    ]
    for beam in (1, 4):
        test = record[f"test_beam_{beam}"]
        how = "greedy" if beam == 1 else f"beam of {beam}"
        rates = [test[k] for k in ("wer", "per", "wer_single_reference", "per_single_reference")]
        cells = " | ".join(f"{rate:.1%}" for rate in rates)
        rows.append(f"| `{part}.py`, {how} | {test['parameters']:,} | {cells} |")
    test = record["test_beam_1"]
    return "\n".join(rows) + (
        f"\n\n{test['sources']:,} words of the test split, phones without stress. "
        f"{record['evaluations'][-1]['step']:,} steps, {record['seconds'] / 60:.1f} minutes in "
        f"all. Measured on {machine(record)}, by `python -m benchmarks.expected {part}`."
    )


def digits_table(part: str = "digits_cpu") -> str:
    """Digits right and word error rates, speaker by speaker, with and without having heard them."""
    record = read(f"expected-{part}")
    if record is None:
        return "Not measured yet."
    test = record["test"]
    strings = test["strings"]
    rows = [
        "| speaker | digits right | WER of strings | digits right, never heard before | WER |",
        "|---|---|---|---|---|",
    ]
    for name, of in test["per_speaker"].items():
        cells = f"{of['accuracy']:.1%} | {strings['per_speaker'][name]['wer']:.2%}"
        unheard = read(f"expected-{part}-without-{name}")
        if unheard:
            cells += f" | {unheard['test']['accuracy']:.1%}"
            cells += f" | {unheard['test']['strings']['wer']:.2%} |"
        else:
            cells += " | not measured | |"
        rows.append(f"| {name} | {cells}")
    rows.append(f"| **all** | **{test['accuracy']:.1%}** | **{strings['wer']:.2%}** | | |")
    low, high = strings["wer_interval"]
    return "\n".join(rows) + (
        f"\n\n{test['clips']} recordings of the official test split, and {strings['strings']} "
        f"strings of three to five of them (95 % interval of their WER: {low:.2%} to {high:.2%}). "
        f"{test['parameters']:,} parameters, {record['evaluations'][-1]['step']:,} steps, "
        f"{record['seconds'] / 60:.1f} minutes in all. The last two columns are of five other "
        f"trainings, each without that speaker. Measured on {machine(record)}, by "
        f"`python -m benchmarks.expected {part}`."
    )


CARDS = {
    "gpt_cpu": "configs/gpt_cpu.py",
    "gpt_cpu_wide": "configs/gpt_cpu_10min.py, 192 wide",
    "g2p_cpu": "configs/g2p_cpu.py",
    "digits_cpu": "configs/digits_cpu.py",
}
QUANT = (
    "Every matrix, embeddings among them, is made of int8 with a bfloat16 scale for each column "
    "(of a table: each row), or int4 with one for each 32 numbers of a column; vectors (gains, "
    "biases, short convolutions) are bfloat16. Integers lie in int32 words, four or eight in each. "
    "With up to four rows to multiply, 32 inputs at a time are unpacked, multiplied and summed in "
    "one loop over the columns, which no float weight leaves: XLA's CPU backend vectorises that, "
    "but neither a conversion from int8 nor a sum over rows. With more rows a matrix is unpacked "
    "just before its matmul. bits counts scales and vectors. A CPU computes in float32: of bf16 "
    "parameters XLA makes a float32 copy ahead of the loop over tokens, and keeps it."
)
KEPT = (
    "Embeddings and vectors are rounded, too, since that costs next to nothing and they are a "
    "share of a small model. Without QAT:"
)
QWIX = (
    "Why not qwix? Its int8 kernels were tried in the same race. They need a Linear that calls "
    "lax.dot_general and casts nothing, leave our embeddings alone, and XLA unpacks them ahead of "
    "the loop over tokens, so the float weights are all in memory again (the column of what a "
    "step of decoding works in). QuantArray is some hundred lines that one can read; qwix is what "
    "a test holds them against."
)


def card(name: str) -> str:
    """The quantization card of a trained run, and what int8 does to the errors of its task."""
    record = read(f"quant-card-{name}")
    if record is None:
        return "Not measured yet."
    first = record["rows"][0]
    rows = [
        "| format | bits | in memory | on disk | val_loss | | tokens/s, batch 1 | batch 32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        sizes = [
            f"{row[key] / 1e6:.2f} MB ({first[key] / row[key]:.2f}x)"
            for key in ("memory_bytes", "disk_bytes")
        ]
        delta = "" if row is first else f"{row['delta']:+.4f}"
        cells = [row["format"], f"{row['bits']:.2f}", *sizes, f"{row['val_loss']:.4f}", delta]
        rows.append(f"| {' | '.join([*cells, *rates(row, first)])} |")
    losses = {row["format"]: row["val_loss"] for row in record["rows"]}
    # Records made before the card had this row have it beside the card.
    further = losses.get(STEPS) or record["float32_after_as_many_steps"]
    note = (
        f"{record['parameters']:,} parameters. QAT is {record['qat_steps']} steps of training, "
        f"which float32 gains from, too: as many without rounding reach {further:.4f}, "
        f"{losses['int4+QAT'] - further:.4f} less."
    )
    if "test" in record:
        of = record["test"]
        float32, int8, int4 = (of[form] for form in ("float32", "int8", "int4+QAT"))
        if "accuracy" in int8:
            note += (
                f" Of the test clips, float32 hears {float32['accuracy']:.1%} right, int8 "
                f"{int8['accuracy']:.1%}, int4 {int4['accuracy']:.1%}; WER of strings "
                f"{float32['strings']['wer']:.2%}, {int8['strings']['wer']:.2%} and "
                f"{int4['strings']['wer']:.2%}."
            )
        else:
            note += (
                f" Word error rate on the test split: float32 {float32['wer']:.2%}, int8 "
                f"{int8['wer']:.2%}, int4+QAT {int4['wer']:.2%}."
            )
    note += f" On this machine {slower(record['rows'])}."
    return "\n".join(rows) + f"\n\n{note} {measured_on(record)}"


def rates(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Tokens per second at batch 1 and 32, also as multiples of the first row's."""
    keys = ("tokens_per_second_1", "tokens_per_second_32")
    return [f"{row[key]:,.0f} ({row[key] / first[key]:.2f}x)" for key in keys]


def kept(name: str) -> str:
    """What it would save and cost to leave a kind of parameters in float32."""
    record = read(f"quant-kept-{name}")
    assert record is not None
    lines = [
        "| left in float32 | int8: smaller | val_loss | int4: smaller | val_loss |",
        "|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row["kept"] for row in record["rows"]):
        cells = [
            f"{row['smaller']:.2f}x | {row['delta']:+.5f}"
            for row in record["rows"]
            if row["kept"] == kind
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{measured_on(record)}"


def quant_decoding(name: str) -> str:
    """Decoding with random weights, format by format."""
    record = read(name)
    assert record is not None
    first = record["rows"][0]
    rows = [
        "| format | parameters | works in, batch 1 | batch 32 | tokens/s, batch 1 | batch 32 |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        cells = [row["format"], f"{row['memory_bytes'] / 1e6:.1f} MB"]
        cells += [f"{row[f'work_bytes_{n}'] / 1e6:.1f} MB" for n in (1, 32)]
        cells += rates(row, first)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + (
        f"\n\n{record['parameters']:,} parameters, random. {measured_on(record)}"
    )


def confusions(part: str = "g2p_cpu") -> str:
    """What is most often taken for what, right > written."""
    cells = [f"{a} > {b} ({n})" for a, b, n in load(part)["test_beam_1"]["confusions"]]
    return ", ".join(cells)


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


def read(name: str) -> dict[str, Any] | None:
    """A figure that may not have been measured."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def measured_on(record: dict[str, Any]) -> str:
    """Hardware, versions, date and command of a record of benchmarks.compare."""
    e = record["environment"]
    packages = ", ".join(
        f"{name} {e['packages'][name]}" for name in ("jax", "torch") if e["packages"][name]
    )
    where = f"{e['cpus']} cores of {e['processor']}" if e["backend"] == "cpu" else e["device"]
    return (
        f"Measured on {where}, {packages}, Python {e['python']}, {e['date']}, by "
        f"`{record['command']}`."
    )


def comparison(title: str, module: Any, names: dict[str, str], note: str) -> list[str]:
    """A section of benchmarks.md: the tables of those records that exist."""
    lines = [f"## {title}", "", note, ""]
    for name, heading in names.items():
        record = read(name)
        if record is None:
            continue
        lines += [f"### {heading}", "", module.table(record), "", measured_on(record), ""]
        if (FOLDER / f"{name}.png").exists():
            lines += [f"![{heading}](benchmarks/{name}.png)", ""]
    return lines


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
        "One initialisation copied into both, the same batches, float32, dropout off. Differences "
        "are relative to the largest value of an array. The gradients are of the first batch "
        "that has no ReLU input within 4e-7 of zero, where its derivative jumps.",
    )
    lines += comparison(
        "How fast does it train?",
        race,
        RACES,
        "Competitors in processes of their own take turns, so that a slow minute hits all of them. "
        "Everything is timed that training includes, but evaluation and checkpoints. FLOP/s are "
        "set against the fastest matmul, in any dtype, that one of them reached between the "
        "rounds.",
    )
    lines += comparison(
        "How fast does it learn?",
        quality,
        {
            "quality-gpt-gpu": "configs/gpt.py on a GPU",
            "quality-cpu": "nanoGPT's configuration for a CPU, by both, and the two of gptjax",
        },
        "Of the first two lines, initial weights and batches are the same. All train in one "
        "process, one after the other; seconds are those of training, compiling included, "
        "evaluation not. On a CPU both are float32. Recipes were chosen by the first half of the "
        "validation split.",
    )
    lines += comparison(
        "How fast does it write?",
        decode,
        {"decode-gpu": "On a GPU", "decode-cpu": "On a CPU"},
        "Models of the sizes of configs/gpt.py with random weights; * was timed once, too slow for "
        "more.",
    )
    lines += ["## How well does it pronounce?", ""]
    for part in ("g2p", "g2p_cpu"):
        if read(f"expected-{part}"):
            lines += [f"### configs/{part}.py", "", g2p_table(part), "", PUBLISHED, ""]
            lines += [f"Most frequent confusions, right > written: {confusions(part)}.", ""]
            lines += [f"![Loss](benchmarks/{part}.png)", ""]
            lines += [f"![Cross-attention](benchmarks/{part}-attention.png)", ""]
    heard = [part for part in ("digits", "digits_cpu") if read(f"expected-{part}")]
    if heard:
        lines += ["## How well does it hear?", ""]
        for part in heard:
            lines += [f"### configs/{part}.py", "", digits_table(part), ""]
            lines += [f"![Loss](benchmarks/{part}.png)", ""]
            lines += [f"![Cross-attention](benchmarks/{part}-attention.png)", ""]
    lines += ["## What does quantization cost?", "", QUANT, ""]
    for name, title in CARDS.items():
        if read(f"quant-card-{name}"):
            lines += [f"### {title}", "", card(name), ""]
        if read(f"quant-kept-{name}"):
            lines += [KEPT, "", kept(name), ""]
    for name, title in {
        "quant-seed-cpu": "Decoding at the seed's size, on a CPU",
        "quant-seed-gpu": "Decoding at the seed's size, on a GPU",
        "quant-gpt2-gpu": "Decoding at GPT-2's size, on a GPU",
    }.items():
        if read(name):
            lines += [f"### {title}", "", quant_decoding(name), ""]
    lines += [QWIX, ""]
    missing = [text for name, text in OPEN_ON_A_GPU.items() if read(name) is None]
    if missing:
        lines += ["## Open", "", "Not measured on a GPU yet:", ""]
        lines += [*[f"- {text}" for text in missing], ""]
    return "\n".join(lines)


def recipe_md() -> str:
    """What each idea of the recipe gives, and where it comes from."""
    lines = [
        "# The recipe",
        "",
        "From the seed's configuration to `configs/gpt_cpu.py`, one idea per rung. Every rung "
        "keeps the ideas below it. Made by `python -m benchmarks.tables`; do not edit.",
        "",
    ]
    sections = {
        "ablate-gpu": ("The ladder on a GPU, at the seed's size", "gpu"),
        "ablate-cpu": ("The ladder on two CPU cores", "cpu"),
        "ablate-short": ("When the text repeats", "short"),
    }
    for name, (heading, which) in sections.items():
        record = read(name)
        if record is None or ablate.missing(record):
            continue
        lines += [f"## {heading}", "", ladders.LADDERS[which].note, "", ablate.table(record), ""]
        lines += [f"![{heading}](benchmarks/{name}.png)", "", ablate.ideas(which), ""]
        lines += [measured_on(record), ""]
    return "\n".join([*lines, ladders.HOW_IT_WAS_CHOSEN])


def headline() -> str:
    """The race with the seed's dropout, on a GPU if measured there, and who won the others."""
    record = read("race-gpt-gpu") or read("race-gpt-cpu")
    if record is None:
        return "Not measured yet."
    lines = [race.race_table(record, record["races"][-1]), "", measured_on(record), ""]
    lines += ["Every race:", ""]
    for name, what in RACES.items():
        for one in (read(name) or {"races": []})["races"]:
            lines.append(f"- {what}, dropout {one['dropout']:g}: {race.verdict(one)}")
    return "\n".join(lines)


def writing() -> str:
    """The race of the samplers, on a GPU where that was measured."""
    record = read("decode-gpu") or read("decode-cpu")
    return "Not measured yet." if record is None else decode.table(record)


def learning() -> str:
    """Loss against time: PyTorch, gptjax, and the recipe."""
    record = read("quality-cpu")
    if record is None:
        return "Not measured yet."
    return f"{quality.table(record)}\n\n{measured_on(record)}"


def readme(text: str) -> str:
    """README.md with what stands between its markers made anew."""
    sample = "```\n" + "\n".join(load("gpt_cpu")["sample"].strip().splitlines()[:14]) + "\n```"
    parts = {
        "sample": sample,
        "expected": expected_table(),
        "race": headline(),
        "writing": writing(),
        "learning": learning(),
        "g2p": f"{g2p_table()}\n\n{PUBLISHED}",
        "digits": digits_table(),
        "quant": f"Of {CARDS['gpt_cpu_wide']}:\n\n{card('gpt_cpu_wide')}",
    }
    return filled(text, parts, "README.md")


def scaling_md(text: str) -> str:
    """docs/scaling.md with the tables of its plan, and of what compiled programs send."""
    parts = {
        "plan-memory": plan.memory_table(),
        "plan-links": plan.links_table(),
        "plan-model": plan.model_axis_table(),
        "plan": plan.plan_table(),
        "simulated": simulated(),
        "scaled": scaled(),
    }
    return filled(text, parts, "docs/scaling.md")


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
    """A text with what stands between pairs of markers made anew."""
    for name, content in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, n = re.subn(pattern, lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text, flags=re.DOTALL)
        assert n == 1, f"{where} needs one pair of <!-- {name} --> markers"
    return text


def main(argv: list[str]) -> None:
    readme_path, scaling_path = Path("README.md"), Path("docs/scaling.md")
    wanted = {
        Path("docs/benchmarks.md"): benchmarks_md(),
        Path("docs/recipe.md"): recipe_md(),
        readme_path: readme(readme_path.read_text()),
        scaling_path: scaling_md(scaling_path.read_text()),
    }
    for path, text in wanted.items():
        if argv == ["--check"]:
            if not path.exists() or path.read_text() != text:
                sys.exit(f"{path} is not what {FOLDER} says; run python -m benchmarks.tables")
        else:
            path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
