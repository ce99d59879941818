"""Trains the shipped configurations and writes docs/benchmarks/expected-PART.json.

    python -m benchmarks.expected bigram gpt_cpu gpt_first_steps g2p_cpu digits_cpu

Each part is trained in its own process, so its seconds are what a user waits for: they include
starting Python, compiling, evaluating and plotting. Models of pairs and of speech are also measured
on their test splits, with a picture of cross-attention. $FSDD names a folder of recordings, which
are fetched otherwise. digits_cpu-without-NAME is trained without that speaker and tested on them.
gpt_first_steps is two evaluations and 20 steps of configs/gpt.py, next to the same steps of the
original PyTorch GPT on the same batches (needs the torch extra).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import quality
from benchmarks.environment import processor
from gptjax import models
from gptjax.commands.evaluate import Evaluate, evaluate
from gptjax.config import GPTConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.config_files import load_file
from gptjax.data import dataset as data
from gptjax.data import speech, texts
from gptjax.data.audio import SAMPLE_RATE
from gptjax.ensemble import Ensemble, member, one_model
from gptjax.evaluation import make_evaluate
from gptjax.kernels.cross_entropy import token_losses
from gptjax.runs import checkpoints
from gptjax.runs.metrics import read_metrics
from gptjax.runs.run_directory import read_config

FOLDER = Path(os.environ.get("OUT", "docs/benchmarks"))
RUNS = Path("runs/expected")

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TINY = ["--train.max-steps", "20", "--train.eval-interval", "20"]
FIRST_STEPS = ["--train.max-steps", "20", "--train.eval-interval", "20", "--train.log-interval"]
FIRST_STEPS += ["1", "--train.eval-batches", "0", "--train.sample-tokens", "0"]
WIDE_STEPS = ["--train.max-steps", "3440", "--train.eval-interval", "860"]
PARTS = {
    "bigram": ["configs/bigram.py"],
    "gpt_cpu": ["configs/gpt_cpu.py"],
    **{f"gpt_cpu-{seed}": ["configs/gpt_cpu.py", "--seed", seed] for seed in "12"},
    "gpt_cpu_10min": ["configs/gpt_cpu_10min.py"],
    **{f"gpt_cpu_10min-{seed}": ["configs/gpt_cpu_10min.py", "--seed", seed] for seed in "12"},
    "gpt_cpu_10min-three": ["configs/gpt_cpu_10min.py", "--train.members", "3"],
    "gpt_cpu_wide": ["configs/gpt_cpu_10min.py", "--model.n-embd", "192", *WIDE_STEPS],
    "gpt_first_steps": ["configs/gpt.py", *FIRST_STEPS],
    "gpt": ["configs/gpt.py"],
    "gpt_fast": ["configs/gpt_fast.py"],
    **{f"gpt_best-{seed}": ["configs/gpt_best.py", "--seed", seed] for seed in "123"},
    "g2p_cpu": ["configs/g2p_cpu.py"],
    "g2p": ["configs/g2p.py"],
    "digits_cpu": ["configs/digits_cpu.py"],
    **{
        f"digits_cpu-without-{name}": ["configs/digits_cpu.py", "--data.hold-out", name]
        for name in SPEAKERS
    },
    "digits": ["configs/digits.py"],
    "debug": ["configs/debug.py"],
    "g2p_debug": ["configs/g2p_cpu.py", *TINY],
    "digits_debug": ["configs/digits_cpu.py", "--data.extra-clips", "0", *TINY],
}
BEAM = 4
ROWS = 8
"""Windows per batch of an evaluation."""
TEMPERATURES = (0.85, 0.88, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0, 1.02)
ATTENTION_PROMPT = "ROMEO:\nI love thee"
ATTENTION_WORD = "philharmonic"
ATTENTION_STRING = 7
"""Index of the test string that is drawn."""


def run(name: str) -> dict[str, Any]:
    """Trains one part from scratch and returns its record."""
    config, *overrides = PARTS[name]
    model = load_file(Path(config)).model
    if isinstance(model, SpeechConfig) and "FSDD" in os.environ:
        overrides += ["--data.path", os.environ["FSDD"]]
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "train.py", "--config", config, *overrides, "--run-dir", str(folder)]
    load_before = os.getloadavg()[0]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    rows = read_metrics(folder)
    evaluations = [row for row in rows if "val_loss" in row]
    environment = json.loads((folder / "environment.json").read_text())
    record = {
        "part": name,
        "command": "python train.py --config " + " ".join([config, *overrides]),
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "load_before": load_before,
        "seconds": round(seconds, 1),
        "val_loss": evaluations[-1]["val_loss"],
        "best_val_loss": min(row["val_loss"] for row in evaluations),
        "evaluations": evaluations,
        "train_loss": {row["step"]: row["train_loss"] for row in rows if "train_loss" in row},
        "environment": {
            k: environment[k] for k in ("python", "devices", "cpus", "packages", "data")
        },
    }
    samples = sorted((folder / "samples").glob("*.txt"), key=lambda path: int(path.stem))
    if samples:
        record["sample"] = samples[-1].read_text()
    if type(model) is GPTConfig:  # a text; models with an encoder are GPTConfigs, too
        record["halves"] = halves(folder)
        record["temperatures"] = temperatures(folder)
    if isinstance(model, SpeechConfig):
        record |= measure_speech(folder)
    if isinstance(model, EncoderDecoderConfig):
        for beam in (1, BEAM):
            record[f"test_beam_{beam}"] = evaluate(Evaluate(folder, beam=beam))
        draw_attention(folder, "--source", ATTENTION_WORD)
    if name == "gpt_cpu":
        draw_attention(folder, "--prompt", ATTENTION_PROMPT)
    return record


def halves(folder: Path) -> dict[str, list[float]]:
    """Losses on the validation split and its halves: of the run and, of several models, of each."""
    config = read_config(folder)
    text = data.load(config)
    model = models.of_run(config, text.tokenizer)
    _, params = checkpoints.load_params(folder, model)
    pairs = [(make_evaluate(model), params)]
    if isinstance(model, Ensemble):
        of_one = make_evaluate(one_model(model))
        pairs += [(of_one, member(params, i)) for i in range(model.n_members)]

    def losses(evaluate: Any, params: Any) -> dict[str, float]:
        def mean_loss(tokens: Any) -> float:
            return evaluate(params, texts.whole_split(tokens, config.model.block_size, ROWS))

        return quality.losses(text, mean_loss)

    found = [losses(*pair) for pair in pairs]
    parts = {"whole": "val_loss", "first": "first_half", "second": "second_half"}
    return {part: [of[name] for of in found] for part, name in parts.items()}


def temperatures(folder: Path) -> dict[str, dict[float, float]]:
    """Losses on the halves of the validation split, had training had another temperature.

    To multiply the trained model's logits does nearly the same as to train with it, at once. Of
    several models, the first one.
    """
    config = read_config(folder)
    text = data.load(config)
    model = models.of_run(config, text.tokenizer)
    _, params = checkpoints.load_params(folder, model)
    if isinstance(model, Ensemble):
        model, params = model.member, member(params, 0)

    @jax.jit
    def sums(params: Any, batch: Any) -> Any:
        batch = {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items()}
        logits, _ = model.apply({"params": params}, batch["tokens"])
        scale = jnp.array(TEMPERATURES) / config.model.training_temperature

        def loss(factor: Any) -> Any:
            losses = token_losses(logits * factor, batch["targets"])
            return jnp.sum(losses * batch["loss_weights"])

        return jnp.stack([*map(loss, scale)]), batch["loss_weights"].sum()

    def mean_losses(tokens: Any) -> dict[float, float]:
        batches = texts.whole_split(tokens, config.model.block_size, ROWS)
        totals, counts = zip(*(sums(params, batch) for batch in batches), strict=True)
        means = np.sum(totals, axis=0, dtype=np.float64) / np.sum(counts)
        return dict(zip(TEMPERATURES, means.tolist(), strict=True))

    middle = len(text.val) // 2
    return {"first": mean_losses(text.val[:middle]), "second": mean_losses(text.val[middle:])}


def draw_attention(folder: Path, *what: str) -> str:
    """Writes FOLDER/attention.png; returns what sample.py printed."""
    command = [sys.executable, "sample.py", str(folder), *what, "--attention"]
    command.append(str(folder / "attention.png"))
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_speech(folder: Path) -> dict[str, Any]:
    """Error rates on the test split, and the transcript and picture of one test string."""
    import soundfile

    config = read_config(folder)
    dataset = speech.load(config)
    assert isinstance(config.model, SpeechConfig)
    string = dataset.test_strings(config.model)[ATTENTION_STRING]
    sound = folder / "string.wav"
    soundfile.write(sound, string.samples_N, SAMPLE_RATE)
    hypothesis = draw_attention(folder, "--audio", str(sound))
    errors = evaluate(Evaluate(folder))
    return {"test": errors, "reference": string.text, "hypothesis": hypothesis}


def torch_first_steps() -> dict[str, Any]:
    """Train losses of the first 20 steps of the original, on the same batches as gptjax."""
    import torch

    from benchmarks import torch_gpt
    from gptjax.data import dataset as data
    from gptjax.data import texts
    from gptjax.data.batches import TRAINING

    config = load_file(Path("configs/gpt.py"))
    block_size, batch_size = config.model.block_size, config.train.batch_size
    assert isinstance(config.model, GPTConfig)
    text = data.load(config)
    torch.manual_seed(config.seed)
    model = torch_gpt.OriginalGPT(config.model, text.tokenizer.vocab_size)
    trainer = torch_gpt.Trainer(model, config.optim, fused=False)
    losses = {}
    for step in range(20):
        batch = texts.random_batch(text.train, block_size, batch_size, config.seed, TRAINING, step)
        tokens, targets = (torch.from_numpy(batch[k]).long() for k in ("tokens", "targets"))
        losses[step + 1] = trainer.step(tokens, targets).item()
        print(f"PyTorch step {step + 1}: {losses[step + 1]:.4f}", flush=True)
    return {"torch": torch.__version__, "torch_train_loss": losses}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.expected",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parts = parser.parse_args(argv).parts
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part in parts:
        record = run(part)
        if part == "gpt_first_steps":
            record |= torch_first_steps()
        path = FOLDER / f"expected-{part}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        if part != "gpt_first_steps" and "-" not in part:
            shutil.copy(RUNS / part / "loss.png", FOLDER / f"{part}.png")
        if (RUNS / part / "attention.png").exists() and "-" not in part:
            shutil.copy(RUNS / part / "attention.png", FOLDER / f"{part}-attention.png")
        print(f"{path}: val_loss {record['val_loss']:.4f} after {record['seconds']:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
