"""Tables of what the shipped configurations reach: losses, error rates, quantization."""

import statistics
from typing import Any

from benchmarks import h100
from benchmarks.records import load, machine, measured_on, read, table
from gptjax.quantization.card import STEPS, slower

# Losses that the original project logged.
ORIGINAL_BIGRAM, ORIGINAL_GPT_START = 2.4911, 4.4707
FAST = "batches of 32, 500 steps"
"""The variation of benchmarks.sweep that configs/gpt_fast.py is."""

PUBLISHED = (
    "Published full-size Transformers, without stress: WER 30.2 % on the latest CMUdict, 20.6 to "
    "22.1 % (PER 5.2 %) on an older and cleaner split. The splits differ, so compare with care."
)
QUANT = (
    "Every matrix, embeddings included, is stored as int8 with one bfloat16 scale per column (of "
    "an embedding table: per row), or as int4 with one scale per 32 numbers of a column. int3, "
    "int2 and ternary, with one scale per column, are of the matrices in blocks; embeddings and "
    "output head are int4 there. Vectors (gains, biases, short convolutions) are bfloat16. "
    "Integers are packed into int32 words: 4, 8, 10, 16 or 20 per word. With up to four rows to "
    "multiply, one loop over the columns unpacks, multiplies and sums about 32 inputs at a time, "
    "so no float weight is written to memory: XLA's CPU backend vectorises that loop, but neither "
    "a conversion from int8 nor a sum over rows. With more rows, a matrix is unpacked just before "
    "its matmul. The column bits includes scales and vectors. A CPU computes in float32: XLA makes "
    "a float32 copy of bf16 parameters before the loop over tokens and keeps it."
)
KEPT = (
    "Embeddings and vectors are quantized as well: that costs next to nothing, and they are a "
    "large share of a small model. Without QAT:"
)
QWIX = (
    "Why not qwix? Its int8 kernels were measured in the same race. They need a Linear that calls "
    "lax.dot_general without casts, they do not quantize our embeddings, and XLA unpacks their "
    "weights before the loop over tokens, so all float weights are in memory again (see the "
    "columns of memory that a decoding step works in). QuantArray is about a hundred readable "
    "lines; a test compares it with qwix."
)
CARDS = {
    "gpt_cpu": "configs/gpt_cpu.py",
    "gpt_cpu_wide": "configs/gpt_cpu_10min.py of 2026-11-27, 192 wide",
    "g2p_cpu": "configs/g2p_cpu.py",
    "digits_cpu": "configs/digits_cpu.py",
}


# --- training


def expected_table(h100_link: str) -> str:
    """What each configuration reaches, and on which machine; the link leads to h100.section."""
    bigram, gpt_cpu = load("expected-bigram"), load("expected-gpt_cpu")
    ten_minutes, three = load("expected-gpt_cpu_10min"), read("expected-gpt_cpu_10min-three")
    gpt, best = h100.losses("gpt"), load("gpu-best")
    (fast,) = (run for run in load("sweep-gpu")["runs"] if run["name"] == FAST)
    last = [run["losses"][-1] for run in best["runs"]]
    cpu = [
        [
            "`bigram.py`, 3,000 steps",
            f"{bigram['val_loss']:.4f}",
            f"{bigram['seconds']:.0f} s",
            f"{ORIGINAL_BIGRAM} (at step 2,700)",
        ],
        [
            f"`gpt_cpu.py`, {gpt_cpu['evaluations'][-1]['step']:,} steps",
            f"{gpt_cpu['val_loss']:.4f}",
            f"{gpt_cpu['seconds']:.0f} s",
            "",
        ],
        [
            f"`gpt_cpu_10min.py`, {ten_minutes['evaluations'][-1]['step']:,} steps",
            f"{ten_minutes['val_loss']:.4f}",
            f"{ten_minutes['seconds']:.0f} s",
            "",
        ],
    ]
    if three:
        what = "`gpt_cpu_10min.py` of 2026-11-27, mean of three models (`--train.members 3`)"
        cpu.append([what, f"{three['val_loss']:.4f}", "", ""])
    original = f"{h100.ORIGINAL_BEST} (sampled, best)"
    gpu = [
        [f"`gpt.py`, GPU, stopped at step {max(gpt):,} of 5,000", f"{gpt[max(gpt)]:.4f}"],
        ["`gpt_fast.py`, GPU, 500 steps", f"{fast['val_loss'][0]:.4f}"],
        [
            f"`gpt_best.py`, eight models, GPU, {last[0][0]:,} steps, mean of three seeds",
            f"{statistics.mean(loss for _, loss in last):.4f}",
        ],
    ]
    rows = [*cpu, *([*row, "", original if i == 0 else ""] for i, row in enumerate(gpu))]
    header = ["config", "val_loss, whole split", "time in all", "the original logs"]
    seeds = [load(f"expected-gpt_cpu-{seed}")["val_loss"] for seed in (1, 2)]
    note = f"With other seeds `gpt_cpu.py` ends at {seeds[0]:.4f} and {seeds[1]:.4f}"
    others = [read(f"expected-gpt_cpu_10min-{seed}") for seed in (1, 2)]
    if all(others):
        ends = " and ".join(f"{of['val_loss']:.4f}" for of in others)
        note += f", `gpt_cpu_10min.py` at {ends}"
    note += "."
    second = [f"{of['halves']['second'][0]:.4f}" for of in (gpt_cpu, ten_minutes)]
    note += " On the second half of the split, by which recipes are not chosen ([one exception]"
    note += f"(recipe.md#how-it-was-chosen)), it ends at {second[0]}"
    note += f", and `gpt_cpu_10min.py` at {second[1]}."
    if three:
        alone = ", ".join(f"{loss:.4f}" for loss in three["halves"]["whole"][1:])
        note += f" The three models, with a little dropout, alone end at {alone}."
    return table(header, rows) + (
        f"\n\n{note}"
        f"\n\nCPU rows: measured on {machine(gpt_cpu)}, compiling included. GPU rows: one H100, "
        f"several runs at once, so no times ([details]({h100_link})); `gpt_fast.py` "
        "without the last 948 characters of the split."
    )


TEMPERATURE_NOTE = """A model that has read its text several times knows some of it by heart. So it
is too sure of what it predicts in other texts. `training_temperature` divides logits in training.
Afterwards nothing divides them, so they are smaller, and the model is less sure. That is
temperature scaling (Guo et al. 2017, arXiv:1706.04599).

The table multiplies the logits of the trained models instead, which is nearly the same. Columns are
losses on a half of the validation split. Temperatures were chosen by the first half."""


def temperature_table() -> str:
    """Losses of the trained models on both halves, had training had other temperatures."""
    records = [load(f"expected-{name}") for name in ("gpt_cpu", "gpt_cpu_10min")]
    columns = [record["temperatures"][half] for record in records for half in ("first", "second")]
    rows = [[t, *(f"{column[t]:.4f}" for column in columns)] for t in columns[0]]
    header = ["temperature", "`gpt_cpu.py`: first half", "second half"]
    header += ["`gpt_cpu_10min.py`: first half", "second half"]
    measured = f"Measured on {machine(records[1])}."
    return f"{table(header, rows)}\n\n{measured}"


def first_steps_table() -> str:
    """gptjax and the original over the first 20 steps of configs/gpt.py."""
    record = load("expected-gpt_first_steps")
    ours, theirs = record["train_loss"], record["torch_train_loss"]
    start, end = (e["val_loss"] for e in record["evaluations"])
    steps = ("1", "2", "5", "10", "15", "20")
    rows = [[s, f"{ours[s]:.4f}", f"{theirs[s]:.4f}"] for s in steps]
    worst = max(abs(ours[s] - theirs[s]) for s in ours)
    return table(["step", "gptjax", "PyTorch original"], rows) + (
        f"\n\nLargest difference of the 20: {worst:.3f} nats. Each starts from its own random "
        "weights, drawn from the same distribution, so the curves are alike and not equal. "
        f"Validation loss at step 0: {start:.4f} (the original: {ORIGINAL_GPT_START}), at step "
        f"20: {end:.4f}.\n\nMeasured on {machine(record)}, torch {record['torch']}, by `python -m "
        "benchmarks.expected gpt_first_steps`."
    )


# --- pronunciation and speech


def g2p_table(part: str = "g2p_cpu") -> str:
    """Error rates of grapheme-to-phoneme conversion."""
    record = load(f"expected-{part}")
    header = ["", "parameters", "WER, any variant", "PER, any variant", "WER, first variant"]
    rows = []
    for beam in (1, 4):
        test = record[f"test_beam_{beam}"]
        how = "greedy" if beam == 1 else f"beam of {beam}"
        keys = ("wer", "per", "wer_single_reference", "per_single_reference")
        rates = [f"{test[key]:.1%}" for key in keys]
        rows.append([f"`{part}.py`, {how}", f"{test['parameters']:,}", *rates])
    return table([*header, "PER, first"], rows) + (
        f"\n\n{record['test_beam_1']['sources']:,} words of the test split, phones without stress. "
        f"{record['evaluations'][-1]['step']:,} steps, {record['seconds'] / 60:.1f} minutes in "
        f"all. Measured on {machine(record)}, by `python -m benchmarks.expected {part}`."
    )


def confusions(part: str = "g2p_cpu") -> str:
    """The most frequent confusions, reference > hypothesis."""
    cells = [
        f"{a} > {b} ({n})" for a, b, n in load(f"expected-{part}")["test_beam_1"]["confusions"]
    ]
    return ", ".join(cells)


def digits_table(part: str = "digits_cpu") -> str:
    """Error rates per speaker, with that speaker in the training data and without."""
    record = load(f"expected-{part}")
    test = record["test"]
    strings = test["strings"]
    rows = []
    for name, row in test["per_speaker"].items():
        cells = [name, f"{row['accuracy']:.1%}", f"{strings['per_speaker'][name]['wer']:.2%}"]
        without = read(f"expected-{part}-without-{name}")
        if without:
            cells += [f"{without['test']['accuracy']:.1%}"]
            cells += [f"{without['test']['strings']['wer']:.2%}"]
        else:
            cells += ["not measured", ""]
        rows.append(cells)
    unseen = [read(f"expected-{part}-without-{name}") for name in test["per_speaker"]]
    mean = ["", ""]
    if all(unseen):
        tests = [of["test"] for of in unseen if of]
        mean = [f"{statistics.mean(of['accuracy'] for of in tests):.1%}"]
        mean += [f"{statistics.mean(of['strings']['wer'] for of in tests):.2%}"]
    rows.append(["**all**", f"**{test['accuracy']:.1%}**", f"**{strings['wer']:.2%}**", *mean])
    header = ["speaker", "digits right", "WER of strings", "digits right, unseen speaker"]
    low, high = strings["wer_interval"]
    return table([*header, "WER, unseen speaker"], rows) + (
        f"\n\n{test['clips']} recordings of the official test split, and {strings['strings']} "
        f"strings of three to five of them (95 % interval of their WER: {low:.2%} to {high:.2%}). "
        f"{test['parameters']:,} parameters, {record['evaluations'][-1]['step']:,} steps, "
        f"{record['seconds'] / 60:.1f} minutes in all. The last two columns are from five other "
        "trainings, each without that speaker; below them the mean. Measured on "
        f"{machine(record)}, by `python -m benchmarks.expected {part}`."
    )


# --- quantization


def rates(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Tokens per second at batch 1 and 32, also as multiples of the first row's."""
    keys = ("tokens_per_second_1", "tokens_per_second_32")
    return [f"{row[key]:,.0f} ({row[key] / first[key]:.2f}x)" for key in keys]


def card(name: str) -> str:
    """The quantization card of a trained run, and what int8 does to the errors of its task."""
    record = load(f"quant-card-{name}")
    first = record["rows"][0]
    rows = []
    for row in record["rows"]:
        sizes = [
            f"{row[key] / 1e6:.2f} MB ({first[key] / row[key]:.2f}x)"
            for key in ("memory_bytes", "disk_bytes")
        ]
        delta = "" if row is first else f"{row['delta']:+.4f}"
        cells = [row["format"], f"{row['bits']:.2f}", *sizes, f"{row['val_loss']:.4f}", delta]
        rows.append([*cells, *rates(row, first)])
    losses = {row["format"]: row["val_loss"] for row in record["rows"]}
    # Older records have this figure beside the rows.
    further = losses.get(STEPS) or record["float32_after_as_many_steps"]
    less = [
        f"{losses[form] - further:.4f} less than {form}" for form in losses if form.endswith("+QAT")
    ]
    note = (
        f"{record['parameters']:,} parameters. QAT is {record['qat_steps']} further steps of "
        "training. float32 gains from further steps as well: as many without rounding reach "
        f"{further:.4f}, {', '.join(less)}."
    )
    if "test" in record:
        float32, int8, int4 = (record["test"][form] for form in ("float32", "int8", "int4+QAT"))
        if "accuracy" in int8:
            note += (
                f" Test clips without an error: float32 {float32['accuracy']:.1%}, int8 "
                f"{int8['accuracy']:.1%}, int4 {int4['accuracy']:.1%}; WER of strings "
                f"{float32['strings']['wer']:.2%}, {int8['strings']['wer']:.2%} and "
                f"{int4['strings']['wer']:.2%}."
            )
        else:
            note += (
                f" Word error rate on the test split: float32 {float32['wer']:.2%}, int8 "
                f"{int8['wer']:.2%}, int4+QAT {int4['wer']:.2%}."
            )
    header = ["format", "bits", "in memory", "on disk", "val_loss", "", "tokens/s, batch 1"]
    return table([*header, "batch 32"], rows) + (
        f"\n\n{note} On this machine {slower(record['rows'])}. {measured_on(record)}"
    )


def kept(name: str) -> str:
    """Size and loss where one kind of parameters stays in float32."""
    record = load(f"quant-kept-{name}")
    rows = []
    for kind in dict.fromkeys(row["kept"] for row in record["rows"]):
        of_kind = [row for row in record["rows"] if row["kept"] == kind]
        cells = ([f"{row['smaller']:.2f}x", f"{row['delta']:+.5f}"] for row in of_kind)
        rows.append([kind, *(cell for pair in cells for cell in pair)])
    header = ["left in float32", "int8: smaller", "val_loss", "int4: smaller", "val_loss"]
    return f"{table(header, rows)}\n\n{measured_on(record)}"


def quant_decoding(name: str) -> str:
    """Decoding with random weights, one row per format."""
    record = load(name)
    first = record["rows"][0]
    rows = []
    for row in record["rows"]:
        work = [f"{row[f'work_bytes_{n}'] / 1e6:.1f} MB" for n in (1, 32)]
        memory = f"{row['memory_bytes'] / 1e6:.1f} MB"
        rows.append([row["format"], memory, *work, *rates(row, first)])
    header = ["format", "parameters", "works in, batch 1", "batch 32", "tokens/s, batch 1"]
    return table([*header, "batch 32"], rows) + (
        f"\n\n{record['parameters']:,} parameters, random. {measured_on(record)}"
    )


DRILLS = {
    "kill": "kill -9 at random moments of start-up, training and saving, then continued: losses "
    "and parameters equal an undisturbed run's bit for bit",
    "term": "SIGTERM at random moments, then continued: exit code 143, and equal bit for bit",
    "damage": "a byte flipped, or a file cut, emptied or removed, anywhere in a run directory: the "
    "right text or result, or one line",
    "disk": "the disk becomes full at a write of training: one line, earlier checkpoints intact, "
    "equal bit for bit once there is room",
    "fuzz": "random command lines, configurations, JSON files, safetensors, WAV files, tables and "
    "manifests: used, or one line; no traceback, no hang, bounded memory",
    "processes": "one of two processes killed or stopped: the other names it in one line and ends "
    "within 30 s",
}

DRILLS_NOTE = (
    "Interruptions and damage at random, made by [drills.py](../benchmarks/drills.py); "
    "[drills.json](benchmarks/drills.json) says what did not survive. Compared bit for bit on one "
    "core."
)


def drills() -> str:
    """What was done to runs, how often, and how many survived."""
    rows = []
    saved = load("drills")["drills"]
    for name, what in DRILLS.items():
        if row := saved.get(name):
            count = row.get("skipped") or f"{row['survived']:,} of {row['tried']:,}"
            rows.append([what, count])
    return table(["what was done, and what counts as survived", "survived"], rows)
