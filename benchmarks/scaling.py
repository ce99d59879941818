"""More than one device: a plan on paper, what compiled programs send, how fast real ones are.

    python -m benchmarks.scaling plan                       # the tables of docs/scaling.md
    python -m benchmarks.scaling simulate --json FILE       # eight simulated devices: HLO, bytes
    python -m benchmarks.scaling weak   --config configs/gpt.py --axis data --json FILE
    python -m benchmarks.scaling strong --config configs/gpt.py --axis fsdp --json FILE

simulate compiles the train step for every layout and runs nothing. weak gives every device the
config's batch, strong divides it; both train on 1, 2, 4 ... of this machine's devices, and take
options of train.py.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import environment, hlo, plan
from benchmarks.compare import check_writable
from benchmarks.race import flops_per_token
from gptjax import models, optim, training
from gptjax.command_line import parse
from gptjax.config import Config, GPTConfig, MeshConfig, OptimConfig, TrainConfig
from gptjax.data import dataset as data
from gptjax.data.texts import TextData
from gptjax.data.tokenizer import CharTokenizer
from gptjax.errors import UserError, exit_codes
from gptjax.scale import devices, sharding
from gptjax.scale.mesh import batch_sharding, make_mesh, n_row_groups, put

AXES = ("data", "fsdp", "model")
N_SIMULATED = 8
SIMULATED = plan.Size("simulated", plan.gpt2(4, 8, 256, 128), 1024, 32)
LAYOUTS = [
    plan.Layout(*mesh, n_micro=2)
    for mesh in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 1, 2), (1, 4, 2))
]
# On a CPU everything is float32.
SIMULATED_BYTES = {"weight": 4, "gradient": 4, "activation": 4}

DISPATCHES = 5


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("part", choices=("plan", "simulate", "weak", "strong"))
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--axis", choices=AXES, default="data", help="of weak and strong")
    parser.add_argument("--device", choices=plan.MEMORY, default="H100", help="of plan")
    argv = sys.argv[1:] if argv is None else argv
    arguments, rest = parser.parse_known_args(argv)
    with exit_codes():
        if arguments.json:
            check_writable(arguments.json)
        match arguments.part:
            case "plan":
                print(plan.tables(arguments.device))
                return
            case "simulate":
                record = simulate()
                shown = simulated_table(record)
            case part:
                record = measure(parse(rest)[0], arguments.axis, weak=part == "weak")
                shown = measured_table(record)
        record["command"] = "python -m benchmarks.scaling " + " ".join(argv)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")
        print(shown)


# --- what a compiled step sends


def simulate() -> dict[str, Any]:
    """Compiles a train step for every layout; to be called before JAX has looked for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", N_SIMULATED)
    size = SIMULATED
    rows = []
    for layout in LAYOUTS:
        print(f"compiling for {layout.name}", file=sys.stderr, flush=True)
        compiled, state = compile_step(size, layout)
        axes = dict(zip(AXES, (layout.data, layout.fsdp, layout.model), strict=True))
        kinds: dict[str, dict[str, Any]] = defaultdict(lambda: {"count": 0, "bytes": 0.0})
        sent: dict[str, float] = defaultdict(float)
        for one in hlo.collectives(compiled.as_text()):
            kinds[one.kind]["count"] += one.count
            kinds[one.kind]["bytes"] += one.sent
            sent[one.axes(axes)] += one.sent
        rows.append(
            {
                "layout": layout.name,
                "state_bytes": sharding.bytes_per_device(state),
                "collectives": kinds,
                "sent": sent,
                "on_paper": plan.sent(size, layout, **SIMULATED_BYTES),
            }
        )
    return {"model": describe(size), "rows": rows, "environment": environment.describe()}


def compile_step(size: plan.Size, layout: plan.Layout) -> tuple[Any, Any]:
    """One optimizer step of AdamW for a mesh: (compiled, shapes of its state)."""
    mesh_config = MeshConfig(layout.data, layout.fsdp, layout.model)
    train = TrainConfig(batch_size=size.batch_size)
    config = Config(size.model, mesh=mesh_config, train=train)
    mesh = make_mesh(config)
    model = models.build(size.model, size.vocab_size, jnp.float32, layout.remat)
    optimizer = optim.build(OptimConfig(), train.max_steps)
    shapes = jax.eval_shape(lambda: training.init_state(models.init(model, 0), optimizer))
    state = sharding.with_sharding(shapes, sharding.shardings(shapes, mesh))
    rows = (1, size.batch_size, size.model.block_size)
    split = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(rows, dtype, sharding=split)
        for name, dtype in (
            ("tokens", np.int32),
            ("targets", np.int32),
            ("loss_weights", np.float32),
        )
    }
    micro_batch_size = size.batch_size // layout.n_micro
    steps = training.make_train_steps(model, optimizer, micro_batch_size, 0, mesh)
    return steps.lower(state, batch, 1).compile(), state


def describe(size: plan.Size) -> str:
    c = size.model
    n_parameters, _ = plan.parameters(c, size.vocab_size)
    return (
        f"{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, block {c.block_size}, "
        f"{n_parameters:,} parameters, batches of {size.batch_size} in "
        f"{LAYOUTS[0].n_micro} micro-batches, float32"
    )


def simulated_table(record: dict[str, Any]) -> str:
    """Bytes of each device, and what it sends, next to what arithmetic says."""
    whole = record["rows"][0]["state_bytes"]
    lines = [
        "| mesh | parameters + Adam | of the whole | collectives of a step | sent | on paper |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        kinds = row["collectives"].items()
        cells = [
            row["layout"],
            megabytes(row["state_bytes"]),
            f"{row['state_bytes'] / whole:.4f}",
            ", ".join(
                f"{of['count']} {kind} ({megabytes(of['bytes'])})" for kind, of in sorted(kinds)
            ),
            megabytes(sum(row["sent"].values())),
            megabytes(sum(row["on_paper"].values())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return f"{record['model']}:\n\n" + "\n".join(lines)


def megabytes(n: float) -> str:
    return f"{n / 1e6:.1f} MB" if n else ""


# --- how fast real devices are


def measure(config: Config, axis: str, weak: bool) -> dict[str, Any]:
    """Trains on 1, 2, 4 ... devices along one axis; tokens are random, and on the devices already.

    Raises UserError on a single device, and for a batch that cannot be divided.
    """
    devices.require_backend()
    n_devices = jax.device_count()
    if n_devices < 2:
        raise UserError(
            f"scaling is measured on two devices or more, but JAX sees one ({devices.describe()}); "
            "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 simulates some"
        )
    if type(config.model) is not GPTConfig:
        raise UserError("scaling is measured with a GPT, as in configs/gpt.py")
    counts = [2**i for i in range(n_devices.bit_length())]
    if axis == "model":  # which devices share the heads along
        counts = [n for n in counts if config.model.n_head % n == 0]
    configs = [resized(config, axis, n, weak) for n in counts]
    for one in configs:
        make_mesh(one)  # refused now rather than after the measuring
    rows = []
    for n, one in zip(counts, configs, strict=True):
        print(f"{n} of {n_devices} devices", file=sys.stderr, flush=True)
        rows.append({"devices": n, "batch_size": one.train.batch_size, **timed(one)})
    return {
        "kind": "weak" if weak else "strong",
        "axis": axis,
        "flops_per_token": flops_per_token(config.model, vocab_size(config)),
        "block_size": config.model.block_size,
        "rows": rows,
        "environment": environment.describe(),
    }


def resized(config: Config, axis: str, n_devices: int, weak: bool) -> Config:
    """The config on so many devices: with a batch that grows with them, or the same one."""
    mesh = dataclasses.replace(MeshConfig(1, 1, 1), **{axis: n_devices})
    times = n_devices if weak else 1
    train = dataclasses.replace(
        config.train,
        batch_size=config.train.batch_size * times,
        micro_batch_size=config.train.micro_batch_size * times,
    )
    return dataclasses.replace(config, mesh=mesh, train=train)


def vocab_size(config: Config) -> int:
    """GPT-2's, or as many characters as tiny-Shakespeare has."""
    return 50_257 if config.data.tokenizer == "gpt2" else 65


def timed(config: Config) -> dict[str, Any]:
    """Seconds of a step, dispatch by dispatch, and the most memory a device has held so far."""
    c = config.train
    mesh = make_mesh(config)
    n_vocab, dtype = vocab_size(config), devices.compute_dtype(c)
    model = models.build(config.model, n_vocab, dtype, c.remat)
    optimizer = optim.build(config.optim, c.max_steps)
    micro_batch_size = devices.micro_batch_size(
        c, config.model, config.model.block_size, n_row_groups(mesh)
    )

    def fresh_state() -> training.TrainState:
        return training.init_state(models.init(model, config.seed), optimizer)

    split = sharding.shardings(jax.eval_shape(fresh_state), mesh)
    state = jax.jit(fresh_state, out_shardings=split)()
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size, config.seed, mesh)
    tokens = np.random.default_rng(0).integers(0, n_vocab, 100_000).astype(np.int32)
    text = TextData(tokens, tokens, CharTokenizer("a"), "random", "")
    n_steps = devices.STEPS_PER_DISPATCH
    batches = data.training_batches(text, config, range(n_steps), n_steps)
    batches = put(batches, c.batch_size, mesh)
    seconds = []
    for _ in range(1 + DISPATCHES):  # the first one compiles
        start = time.perf_counter()
        state, metrics = train_steps(state, batches, n_steps)
        metrics.loss.block_until_ready()
        seconds.append((time.perf_counter() - start) / n_steps)
    statistics_ = mesh.devices.flat[0].memory_stats() or {}
    return {
        "mesh": "x".join(map(str, mesh.devices.shape)),
        "seconds_per_step": seconds[1:],
        "peak_bytes": statistics_.get("peak_bytes_in_use"),
    }


def measured_table(record: dict[str, Any]) -> str:
    """Tokens per second, and the share of them that more devices keep of one's."""
    lines = [
        "| devices | mesh | batch | ms/step, median (least to most) | tokens/s | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    rates = []
    for row in record["rows"]:
        seconds = row["seconds_per_step"]
        median = statistics.median(seconds)
        rates.append(row["batch_size"] * record["block_size"] / median)
        cells = [
            f"{row['devices']}",
            row["mesh"],
            f"{row['batch_size']}",
            f"{1e3 * median:.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})",
            f"{rates[-1]:,.0f}",
            f"{rates[-1] / rates[0] / row['devices']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
