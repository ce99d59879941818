"""Compiles train steps for a GPU on a machine that has none, and says what they are made of.

    python -m benchmarks.compile_for [gpt gpt_fast gpt2_124m] [--gpu benchmarks/gpus/h100.txtpb]
        [--json FILE] [--hlo FOLDER] [--rows 20]

A configuration may be varied: gpt2_124m:block_size=4096:batch_size=4:attention=plain. Without
names, those that docs/benchmarks.md shows. Wants JAX's CUDA plugin beside the CPU's jaxlib, in an
environment of its own: `make aot` makes one. The GPU is described by a file, which XLA takes
instead of a device.

Kernels, bytes and memory are those of a real run within some per cent; times are not, and which
program multiplies matrices is not: tuning wants the GPU. Bytes count every operand and result of
every kernel once, so they are an upper bound where caches help, and bytes / bandwidth is about
the least time of a step.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import math
import os
import re
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import models, optim, training
from gptjax.config import Config, TextDataConfig
from gptjax.kernels import choice
from gptjax.scale import devices

AUTOMATIC = choice.Choice()
H100 = Path(__file__).parent / "gpus" / "h100.txtpb"
ITEM_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
ITEM_SIZES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
BANDWIDTH = 3e12  # bytes per second that an H100's copy reached
NO_KERNEL = ("parameter", "get-tuple-element", "bitcast", "tuple", "constant", "after-all")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction of the loop over steps: what it is, what it writes, where it comes from."""

    n_bytes: int
    kind: str
    result: str
    source: str


def missing() -> str:
    """Why this machine cannot compile for a GPU; empty if it can."""
    try:
        sharding_of(H100)
    except Exception as error:  # whatever the plugin's absence makes JAX raise
        return f"no compiler for CUDA: {str(error).splitlines()[0][:100]}"
    return ""


def sharding_of(gpu: Path) -> Any:
    """Of arrays on one GPU that is not there."""
    from jax.experimental import topologies

    # To compile, JAX 0.11 would want CUDA's libraries, which only a GPU needs.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    topology = topologies.get_topology_desc(
        "", "cuda", topology="1x1x1", target_config=gpu.read_text()
    )
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("device",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@contextlib.contextmanager
def pretend_gpu() -> Iterator[None]:
    """gptjax decides as on one GPU."""
    with (
        mock.patch.object(devices, "backend", return_value="gpu"),
        mock.patch.object(devices, "n_devices", return_value=1),
    ):
        yield


with pretend_gpu():
    GPU_OPTIONS = devices.compiler_options()


def read(name: str) -> Config:
    """A configuration of configs/; of gpt2_124m a micro-batch of 16, which is one GPU's work."""
    path = Path(__file__).parent.parent / "configs" / f"{name}.py"
    config = runpy.run_path(str(path))["config"]
    return with_rows(config, 16) if name == "gpt2_124m" else config


def with_rows(config: Config, n: int) -> Config:
    """The configuration with batches of n sequences, each one micro-batch."""
    train = dataclasses.replace(config.train, batch_size=n, micro_batch_size=n)
    return dataclasses.replace(config, train=train)


def lower(c: Config, gpu: Path = H100, chosen: choice.Choice = AUTOMATIC) -> jax.stages.Lowered:
    """The train steps of a configuration, of whole batches, for this GPU."""
    assert isinstance(c.data, TextDataConfig)
    vocab_size = 50257 if c.data.tokenizer == "gpt2" else 65
    with pretend_gpu(), choice.using(chosen):
        model = models.build(c.model, vocab_size, jnp.bfloat16, c.train.remat)
        optimizer = optim.build(c.optim, c.train.max_steps)
        sharding = sharding_of(gpu)

        def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        params = jax.eval_shape(lambda: models.init(model, 0))
        state = jax.eval_shape(lambda params: training.init_state(params, optimizer), params)
        steps, rows, length = devices.STEPS_PER_DISPATCH, c.train.batch_size, c.model.block_size
        kinds = {"tokens": jnp.int32, "targets": jnp.int32, "loss_weights": jnp.float32}
        batches = {k: jax.ShapeDtypeStruct((steps, rows, length), v) for k, v in kinds.items()}
        state, batches = jax.tree.map(place, (state, batches))
        train_steps = training.make_train_steps(
            model, optimizer, c.train.micro_batch_size or rows, 0
        )
        # From JAX 0.11 on, Pallas learns from the mesh in use what GPU there is.
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            return train_steps.lower(state, batches, steps)  # pyright: ignore


def shapes_in(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array type in a piece of HLO."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", text)
    return [(d, tuple(int(n) for n in s.split(",") if n)) for d, s in found if d in ITEM_SIZES]


def n_bytes(text: str) -> int:
    return sum(ITEM_SIZES[dtype] * math.prod(shape) for dtype, shape in shapes_in(text))


def kernels(hlo: str) -> list[Kernel]:
    """The kernels in the body of the loop over steps: the computation with the most of them."""
    body = max(hlo.split("\n\n"), key=lambda s: len(re.findall(r" (?:fusion|custom-call)\(", s)))
    results: dict[str, str] = {}
    found = []
    for line in body.splitlines():
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)", line)
        if not match:
            continue
        name, result, kind, rest = match.groups()
        results[name] = result
        if kind in NO_KERNEL:
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        moved = n_bytes(result) + sum(n_bytes(results.get(operand, "")) for operand in operands)
        for pattern in (r'custom_call_target="([^"]*)"', r'"kind":"(__\w+)"', r"kind=(\w+)"):
            if inner := re.search(pattern, line):
                kind = inner.group(1)
                break
        source = re.search(r'op_name="([^"]*)"', line)
        place = re.sub(r"block_\d+", "block", source.group(1)[-90:]) if source else ""
        found.append(Kernel(moved, kind, result[:60], place))
    return found


def measure(lowered: jax.stages.Lowered, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(figures, HLO) of a program; CPU seconds are of all threads of this process."""
    before, start = time.process_time(), time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    cpu, wall = time.process_time() - before, time.perf_counter() - start
    hlo = compiled.as_text() or ""
    of_step = kernels(hlo)
    memory = compiled.memory_analysis()
    return {
        "gb_per_step": sum(kernel.n_bytes for kernel in of_step) / 1e9,
        "kernels_per_step": len(of_step),
        "temporaries_mib": memory.temp_size_in_bytes / 2**20 if memory else math.nan,
        "compile_cpu_seconds": cpu,
        "compile_seconds": wall,
    }, hlo


def print_kernels(of_step: list[Kernel], n_rows: int) -> None:
    """The kinds of kernels that move the most bytes."""
    groups: dict[tuple[str, str, str], list[int]] = collections.defaultdict(list)
    for k in of_step:
        groups[k.kind, k.result, k.source].append(k.n_bytes)
    for (kind, result, source), moved in sorted(groups.items(), key=lambda g: -sum(g[1]))[:n_rows]:
        us = 1e6 * sum(moved) / BANDWIDTH
        print(f"{us:6.0f} us x{len(moved):3d}  {kind[:26]:26s} {result:60s} {source}")


NAMES = ["gpt", "gpt_fast"]
NAMES += [f"gpt2_124m:batch_size={n}" for n in (16, 32, 64)]
NAMES += [f"gpt2_124m:block_size={n}:batch_size={16384 // n}" for n in (2048, 4096, 8192)]
NAMES += [f"{name}:attention=plain" for name in (NAMES[0], NAMES[2], NAMES[3], NAMES[-1])]


def vary(name: str) -> tuple[Config, choice.Choice]:
    """The configuration and the kernels that a name stands for."""
    name, *changes = name.split(":")
    config, chosen = read(name), AUTOMATIC
    for change in changes:
        field, _, value = change.partition("=")
        match field:
            case "attention":
                chosen = choice.Choice(value, norm=None if value == "kernel" else False)  # pyright: ignore
            case "batch_size":
                config = with_rows(config, int(value))
            case "block_size":
                model: Any = dataclasses.replace(config.model, block_size=int(value))  # pyright: ignore
                config = dataclasses.replace(config, model=model)
            case _:
                raise SystemExit(f"{change} is none of attention, batch_size, block_size")
    return config, chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=NAMES)
    parser.add_argument("--gpu", type=Path, default=H100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hlo", type=Path)
    parser.add_argument("--rows", type=int, default=0)
    args = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    table = []
    print(f"{'config':44s}  GB/step  kernels  temporaries MiB  CPU s: traced  compiled")
    for name in args.configs:
        config, chosen = vary(name)
        before = time.process_time()
        lowered = lower(config, args.gpu, chosen)
        traced = time.process_time() - before
        figures, hlo = measure(lowered, GPU_OPTIONS)
        table.append({"config": name, **figures, "trace_cpu_seconds": traced})
        print(
            f"{name:44s} {figures['gb_per_step']:8.1f}  {figures['kernels_per_step']:7d}  "
            f"{figures['temporaries_mib']:15,.0f}  {traced:13.1f}  "
            f"{figures['compile_cpu_seconds']:8.1f}",
            flush=True,
        )
        if args.hlo:
            args.hlo.mkdir(parents=True, exist_ok=True)
            (args.hlo / f"{name}.txt").write_text(hlo)
        if args.rows:
            print_kernels(kernels(hlo), args.rows)
        if args.json:
            about = {
                "gpu": args.gpu.stem,
                "jax": jax.__version__,
                "date": time.strftime("%Y-%m-%d"),
            }
            args.json.write_text(json.dumps(about | {"table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
