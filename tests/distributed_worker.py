"""What test_layouts.py and test_processes.py have other processes do, with simulated devices.

python tests/distributed_worker.py layouts [MODEL/LAYOUT ...]
python tests/distributed_worker.py move FOLDER [PROCESS HOST:PORT]
"""

import json
import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import forked
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax import evaluation, models, optim, training
from gptjax.config import Config, GPTConfig, MeshConfig, OptimConfig, TrainConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.kernels.dropout import row_streams
from gptjax.layers import Dropout
from gptjax.runs.checkpoints import Checkpoints
from gptjax.scale import processes, sharding
from gptjax.scale.mesh import ROWS, make_mesh, put

REPO = Path(__file__).parents[1]
WORKER = REPO / "tests" / "distributed_worker.py"


def run(*command: object, **options: Any) -> str:
    done = forked.run(*command, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# --- layouts that compute the same

LAYOUTS = {
    name: MeshConfig(*map(int, name.split("x")))
    for name in ("1x1x1", "8x1x1", "1x8x1", "2x2x2", "4x1x2", "1x4x2")
}
MODERN: Any = {
    "n_layer": 1,
    "n_head": 4,
    "n_embd": 64,
    "block_size": 16,
    "dropout": 0.2,
    "norm": "rmsnorm",
    "activation": "relu2",
    "position": "rotary",
    "qk_norm": True,
    "short_conv": 3,
    "logit_softcap": 15.0,
}
SEED: Any = {"n_layer": 1, "n_head": 4, "n_embd": 64, "block_size": 16, "dropout": 0.2}
CONFIGS = {
    "gpt": (GPTConfig(**SEED), "adamw"),
    "modern": (GPTConfig(**MODERN), "muon"),
    # Everything of modern, and an encoder.
    "pairs": (EncoderDecoderConfig(**MODERN, n_encoder_layer=1, source_block_size=12), "muon"),
    "speech": (SpeechConfig(**SEED, n_encoder_layer=1, source_block_size=12, n_mels=8), "adamw"),
}
VOCAB_SIZE, BATCH_SIZE, MICRO_BATCH_SIZE, N_STEPS = 19, 16, 8, 6


def build(name: str) -> models.Model:
    config = CONFIGS[name][0]
    match config:
        case EncoderDecoderConfig():
            return models.EncoderDecoder(config, VOCAB_SIZE, 13)
        case SpeechConfig():
            return models.SpeechRecognizer(config, VOCAB_SIZE)
        case _:
            return models.GPT(config, VOCAB_SIZE)


def batches(name: str, n: int) -> dict[str, np.ndarray]:
    """n batches for a model, ragged where they may be."""
    rng = np.random.default_rng(5)
    shape = n, BATCH_SIZE, 16
    batch: dict[str, np.ndarray] = {
        "tokens": rng.integers(0, VOCAB_SIZE, shape).astype(np.int32),
        "targets": rng.integers(0, VOCAB_SIZE, shape).astype(np.int32),
        "loss_weights": (rng.random(shape) < 0.8).astype(np.float32),
    }
    lengths = rng.integers(1, 13, (n, BATCH_SIZE, 1))
    if name == "pairs":
        batch["source"] = rng.integers(0, 13, (n, BATCH_SIZE, 12)).astype(np.int32)
        batch["source_mask"] = np.arange(12) < lengths
    if name == "speech":
        batch["source"] = rng.standard_normal((n, BATCH_SIZE, 24, 8)).astype(np.float32)
        batch["source_mask"] = np.arange(24) < 2 * lengths
    return batch


def mesh_of(layout: MeshConfig) -> Mesh:
    train = TrainConfig(batch_size=BATCH_SIZE, micro_batch_size=MICRO_BATCH_SIZE)
    return make_mesh(Config(GPTConfig(**SEED), mesh=layout, train=train))


def by_path(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in sharding.by_path(tree).items()}


@cache
def start(name: str) -> tuple[models.Model, optax.GradientTransformation, Any]:
    """A model, an optimizer that also keeps the gradient, and random parameters."""
    model, rng = build(name), np.random.default_rng(3)
    inner = optim.build(OptimConfig(name=CONFIGS[name][1], learning_rate=1e-3), N_STEPS)
    params = jax.tree.map(
        lambda p: rng.normal(p.ndim == 1, 0.1, p.shape).astype(p.dtype), models.shapes(model)
    )
    return model, optax.chain(optax.trace(decay=0), inner), params


@cache
def observe(name: str, layout: str) -> dict[str, Any]:
    """Everything of a training that must not depend on the layout, and bytes, which must."""
    mesh, (model, optimizer, params) = mesh_of(LAYOUTS[layout]), start(name)
    first = partial(training.init_state, optimizer=optimizer)
    state_shardings = sharding.shardings(jax.eval_shape(first, params), mesh)
    state = jax.jit(first, out_shardings=state_shardings)(params)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    share = sharding.bytes_per_device(state) / whole
    batch = put(batches(name, N_STEPS), BATCH_SIZE, mesh)
    train_steps = training.make_train_steps(model, optimizer, MICRO_BATCH_SIZE, 1, mesh)
    state, metrics_1 = train_steps(state, batch, 1)
    gradient = by_path(state.opt_state[0].trace)
    # Batch 0 comes again; one executable serves any number of steps.
    state, metrics = train_steps(state, batch, N_STEPS - 1)
    evaluate = evaluation.make_evaluate(model, mesh)
    return {
        "gradient": gradient,
        "losses": np.concatenate([metrics_1.loss[:1], metrics.loss[: N_STEPS - 1]]),
        "val_loss": evaluate(state.params, [put(batches(name, 2), BATCH_SIZE, mesh)]),
        "share": max(share, sharding.bytes_per_device(state) / whole),
    }


@cache
def initial(layout: str) -> dict[str, np.ndarray]:
    """First parameters of gpt, made where the layout has them."""
    init = partial(models.init, build("gpt"), 3)
    shardings = sharding.shardings(jax.eval_shape(init), mesh_of(LAYOUTS[layout]))
    return by_path(jax.jit(init, out_shardings=shardings)())


@cache
def masks(layout: str) -> list[np.ndarray]:
    """Of residual branches (B, T, D) and of attention weights (B, H, T, S), split as in use."""
    mesh, made = mesh_of(LAYOUTS[layout]), []
    for shape, spec in (
        ((8, 6, 64), P(ROWS)),
        ((8, 4, 6, 6), P(ROWS, "model")),
    ):

        @jax.jit
        def mask(x: Any, rows_B: Any, spec: Any = spec) -> Any:
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
            y = Dropout(0.3).apply({}, x, row_streams(jax.random.key(7), rows_B))
            return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, spec))

        rows_B = jax.device_put(np.arange(8) * 2 + 1, NamedSharding(mesh, P(ROWS)))
        made.append(np.asarray(mask(np.ones(shape, np.float32), rows_B)))
    return made


def layouts(*chosen: str) -> None:
    """How far layouts are from one device, as JSON: {"MODEL/LAYOUT": {what: number}}."""
    found = {}
    for case in chosen or [f"{name}/{layout}" for name in CONFIGS for layout in LAYOUTS]:
        name, layout = case.split("/")
        have, want = observe(name, layout), observe(name, "1x1x1")
        far = {
            path: float(np.abs(have["gradient"][path] - g).max() / np.abs(g).max())
            for path, g in want["gradient"].items()
        }
        found[case] = {
            "parameters_differ": [
                path for path, p in initial("1x1x1").items() if (initial(layout)[path] != p).any()
            ],
            "masks_differ": sum(
                (a != b).any() for a, b in zip(masks(layout), masks("1x1x1"), strict=True)
            ).item(),
            "gradient": max(far.values()),
            "gradient_of": max(far, key=far.__getitem__),
            "losses": float(np.abs(have["losses"] / want["losses"] - 1).max()),
            "val_loss": abs(have["val_loss"] / want["val_loss"] - 1),
            "share_x_parts": have["share"] * LAYOUTS[layout].fsdp * LAYOUTS[layout].model,
        }
    print(json.dumps(found))


# --- checkpoints that move

MOVES = {"1": MeshConfig(data=1), "8": MeshConfig(fsdp=8), "4x2": MeshConfig(fsdp=4, model=2)}
TWO_PROCESSES = MeshConfig(data=2, fsdp=2, model=2)


def some_state(mesh: Mesh) -> training.TrainState:
    """Random numbers in every array, whatever the layout; step 7."""
    optimizer = optim.build(OptimConfig(name="muon"), N_STEPS)
    model, rng = build("modern"), np.random.default_rng(9)
    shapes = jax.eval_shape(lambda: training.init_state(models.init(model, 3), optimizer))

    def put(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
        numbers = rng.standard_normal(shape.shape) if shape.shape else np.array(7)
        numbers = numbers.astype(shape.dtype)
        return jax.make_array_from_callback(shape.shape, sharding, lambda index: numbers[index])

    return jax.tree.map(put, shapes, sharding.shardings(shapes, mesh))


def restores(folder: Path, want: training.TrainState, mesh: Mesh) -> bool:
    """Whether a checkpoint holds some_state to the bit, and gets its layout."""
    like = sharding.with_sharding(want, sharding.shardings(want, mesh))
    have = Checkpoints(folder).restore(7, like)

    def same(a: Any, b: Any) -> bool:
        shards = zip(a.addressable_shards, b.addressable_shards, strict=True)
        return a.sharding == b.sharding and all(
            x.index == y.index and np.array_equal(x.data, y.data) for x, y in shards
        )

    return all(jax.tree.leaves(jax.tree.map(same, have, want)))


def move(folder: Path, *address: str) -> None:
    """Saves in every layout, waits until others did, too, and restores all in every layout.

    Prints the moves that went wrong.
    """
    meshes = {"2 processes": TWO_PROCESSES} if address else MOVES
    process, coordinator = (int(address[0]), address[1]) if address else (0, "")
    with processes.distributed_session(coordinator, 2, process):
        for name, layout in meshes.items():
            checkpoints = Checkpoints(folder / name, keep_latest=1)
            checkpoints.save(some_state(mesh_of(layout)))
            checkpoints.close()
            (folder / f"{name}.saved").touch()
        saved, end = (*MOVES, "2 processes"), time.monotonic() + 120
        while not all((folder / f"{name}.saved").exists() for name in saved):
            assert time.monotonic() < end
            time.sleep(0.1)
        for name, layout in meshes.items():
            mesh = mesh_of(layout)
            want = some_state(mesh)
            for other in saved:
                if not restores(folder / other, want, mesh):
                    print(f"{other} -> {name}")


if __name__ == "__main__":
    if sys.argv[1] == "layouts":
        layouts(*sys.argv[2:])
    else:
        move(Path(sys.argv[2]), *sys.argv[3:])
