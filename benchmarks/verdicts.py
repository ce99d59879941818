"""gptjax against PyTorch in one table, the first figures of README.md."""

from typing import Any

from benchmarks import h100, race
from benchmarks.records import load, table

PAGE = "docs/benchmarks.md"


def verdicts() -> str:
    """One row for each question. Ratios above 1 mean that gptjax is faster."""
    decoding = [_rates(of["rows"]) for of in load("decode-cpu")["races"]]
    writes = [ours / theirs for ours, theirs in decoding]
    on_h100 = [theirs / ours for ours, theirs in map(h100.race_of, (0.2, 0.0))]
    curves = load("quality-cpu")["curves"]
    theirs, ours = curves["PyTorch, tuned"], curves["gptjax, configs/gpt_cpu.py"]
    small, original = _race("race-gpt_cpu-cpu"), _race("race-gpt-cpu")
    assert max(original[:2]) < 1 < min(*writes, *small), "the words of the table say who is faster"
    rows = [
        [
            "Are the results equal?",
            "Yes, within rounding: logits and gradients, and 100 losses of a smaller model",
            f"[parity]({PAGE}#does-it-compute-the-same-as-pytorch)",
        ],
        [
            "Is training faster on a CPU? `gpt_cpu.py` with AdamW",
            f"Yes: {small[0]:.2f}x as fast as PyTorch at its best, {small[1]:.2f}x with dropout",
            f"[races]({PAGE}#how-fast-does-it-train)",
        ],
        [
            "The original model, `gpt.py`, on a CPU",
            f"No: {original[1]:.2f}x as fast as PyTorch in bfloat16, {original[0]:.2f}x without "
            f"dropout. Both in float32: {original[3]:.2f}x and {original[2]:.2f}x",
            f"[races]({PAGE}#how-fast-does-it-train)",
        ],
        [
            f"Is training faster on a GPU? `gpt.py` on one {h100.device()}",
            f"**{'Yes' if min(on_h100) > 1 else 'No'}: {on_h100[0]:.2f}x as fast as PyTorch at its "
            f"best**, {on_h100[1]:.2f}x without dropout",
            f"[race]({PAGE}{h100.anchor()})",
        ],
        [
            "Is sampling faster on a CPU?",
            f"Yes: {writes[0]:.1f}x as fast as Hugging Face's GPT-2 with a KV cache, "
            f"{writes[1]:.1f}x in batches of 32",
            f"[sampling]({PAGE}#how-fast-does-it-write)",
        ],
        [
            "Is the loss lower after the same time on a CPU?",
            f"Yes: val_loss {ours['val_loss'][-1]:.4f} after {ours['seconds'][-1]:.0f} s of "
            f"training, against {theirs['val_loss'][-1]:.4f} after {theirs['seconds'][-1]:.0f} s "
            "of nanoGPT's CPU configuration in PyTorch",
            f"[recipe]({PAGE}#how-fast-does-it-learn)",
        ],
    ]
    return table(["question", "answer", "details"], rows)


def _race(name: str) -> list[float]:
    """PyTorch's best time / gptjax's: without and with dropout in any dtype, then in float32."""
    races = sorted(load(name)["races"], key=lambda one: one["dropout"])
    ratios = []
    for dtypes in ("any", "float32"):
        for one in races:
            ours, theirs = (race.fastest(one, side, dtypes) for side in ("gptjax", "PyTorch"))
            assert ours
            assert theirs
            ratios.append(theirs["median"] / ours["median"])
    return ratios


def _rates(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """1 / seconds of gptjax and of Hugging Face."""
    median = {row["name"].split(",")[0]: row["median"] for row in rows if "KV" in row["name"]}
    return 1 / median["gptjax"], 1 / median["Hugging Face GPT-2"]
