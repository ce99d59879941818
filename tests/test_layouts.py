"""Whatever the mesh, eight devices compute what one does; and what memory that takes.

The devices are simulated, in processes of their own, since JAX counts its devices but once.
"""

import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, VOCAB_SIZE
from distributed_worker import WORKER, run
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding

from gptjax import models, optim, training
from gptjax.config import Config, GPTConfig, MeshConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.scale import memory, sharding
from gptjax.scale.mesh import AXES, make_mesh


@pytest.mark.slow
def test_no_layout_changes_what_is_computed() -> None:
    """Gradients to 1e-5 of the largest number of each array, losses of six small steps."""
    # Axes alone, and all at once. The worker alone, by hand, does all models and layouts. The
    # decoder of pairs has every array of modern, that of speech every one of gpt. First parameters
    # are those of gpt, in each layout.
    cases = ["gpt/8x1x1", "gpt/1x8x1", "pairs/2x2x2", "speech/2x2x2"]
    found = json.loads(run(WORKER, "layouts", *cases, n_devices=8))
    assert [*found] == cases
    for case, of in found.items():
        assert of["parameters_differ"] == [], case
        assert of["masks_differ"] == 0, case
        assert of["gradient"] <= 1e-5, (case, of["gradient_of"])
        assert of["losses"] <= 1e-5, case
        assert of["val_loss"] <= 1e-5, case
        assert of["share_x_parts"] <= 1.05, case


def test_exactly_one_rule_fits_every_array() -> None:
    mesh = make_mesh(Config(TINY, mesh=MeshConfig(data=1)))
    for config in (TINY, GPTConfig(**vars(TINY) | {"activation": "swiglu", "short_conv": 3})):
        model = models.GPT(config, VOCAB_SIZE)
        for name in ("adamw", "muon"):
            optimizer = optim.build(OptimConfig(name=name, grad_clip=1.0), 10)
            state = jax.eval_shape(
                lambda m=model, o=optimizer: training.init_state(models.init(m, 0), o)
            )
            sharding.shardings(state, mesh)  # raises where none fits, or several
    for path in ("block_0.mlp.unheard_of", "block_0.kernel"):
        with pytest.raises(ValueError, match=f"0 sharding rules fit {path}"):
            sharding.partition_spec(path, (4, 4), mesh)


def test_axes_that_do_not_divide_move_on() -> None:
    class Mesh:  # what partition_spec asks of one
        def __init__(self, data: int, fsdp: int, model: int):
            self.shape = {"data": data, "fsdp": fsdp, "model": model}

    def spec(path: str, shape: tuple[int, ...], *sizes: int) -> tuple:
        return tuple(sharding.partition_spec(path, shape, Mesh(*sizes)))  # type: ignore[arg-type]

    assert spec("block_0.mlp.hidden.kernel", (8, 32), 2, 2, 2) == ("fsdp", "model")
    assert spec("block_0.mlp.output.kernel", (32, 8), 2, 2, 2) == ("model", "fsdp")
    assert spec("token_embedding.table", (65, 32), 1, 4, 2) == (None, ("model", "fsdp"))
    assert spec("head.kernel", (32, 65), 1, 4, 2) == (("fsdp", "model"), None)
    assert spec("block_0.mlp.hidden.bias", (32,), 1, 4, 2) == (("model", "fsdp"),)
    assert spec("head.bias", (65,), 1, 4, 2) == (None,)  # nothing divides it
    assert spec("head.kernel", (7, 65), 1, 4, 2) == (None, None)
    assert spec("0.mu.(64, 64)", (12, 64, 64), 1, 4, 2) == ("fsdp", "model", None)


PATHS = ("query.kernel", "output.kernel", "head.kernel", "conv_0.kernel", "hidden.bias")
PATHS += ("token_embedding.table", "norm.scale", "mu.(64, 64)")
SIZES = st.sampled_from([1, 2, 3, 4, 8])


@given(st.sampled_from(PATHS), st.lists(st.integers(1, 96), min_size=3, max_size=3), *[SIZES] * 3)
def test_every_partition_spec_is_valid(
    name: str, shape: list[int], data: int, fsdp: int, n_model: int
) -> None:
    """Whatever the shape and the mesh: no axis twice, and each one divides its dimension."""
    path = f"block_0.{name}"
    n_dims = 3 if "(" in name else 1 if name.endswith(("bias", "scale")) else 2
    sizes, shape_used = (data, fsdp, n_model), tuple(shape[:n_dims])
    mesh: Any = AbstractMesh(sizes, AXES)
    at_rest = sharding.partition_spec(path, shape_used, mesh)
    in_use = sharding.spec_in_use(path, shape_used, mesh)
    for spec in (at_rest, in_use):
        NamedSharding(mesh, spec).shard_shape(shape_used)  # raises unless the axes fit
        used = [axis for axes in spec for axis in (axes if isinstance(axes, tuple) else (axes,))]
        assert len({*used} - {None}) == len([axis for axis in used if axis])
    # Data parallelism keeps parameters whole; in use only the model axis splits them.
    assert "data" not in str(at_rest)
    assert "fsdp" not in str(in_use)


STEP = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from gptjax.scale import sharding
from gptjax.scale.mesh import ROWS, make_mesh
from gptjax.config import Config, MeshConfig

jax.config.update("jax_enable_compilation_cache", False)  # it dumps what it compiles
kernel, x = jax.random.normal(jax.random.key(1), (2, 64, 64))
whole = {"mlp": {"hidden": {"kernel": kernel, "bias": jnp.ones(64)}}}

def loss(params, x):
    hidden = params["mlp"]["hidden"]
    y = x.astype(jnp.bfloat16) @ hidden["kernel"].astype(jnp.bfloat16)
    return jnp.mean(y.astype(jnp.float32) ** 2 + hidden["bias"])

want = jax.jit(jax.value_and_grad(loss))(whole, x)
for axis in ("data", "fsdp"):
    mesh = make_mesh(Config(mesh=MeshConfig(**{axis: 8})))
    params = jax.device_put(whole, sharding.shardings(whole, mesh))
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec(ROWS)))
    gathered = sharding.gather_for_use(loss, mesh, jnp.bfloat16)

    def step(params, x):
        value, gradient = jax.value_and_grad(gathered)(params, x)
        return value, sharding.constrain(gradient, mesh)

    step.__name__ = axis  # of the program that is dumped
    have = jax.jit(step)(params, rows)
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())
"""


@pytest.mark.slow
def test_bfloat16_is_what_travels(tmp_path: Path) -> None:
    """Of matrices, as XLA partitions a step; on a CPU it is then turned into float32."""
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_pass_re=spmd-partitioning"
    run("-c", STEP, n_devices=8, environment={"XLA_FLAGS": dump})
    for axis, gathered in (("data", []), ("fsdp", ["bf16"])):
        (program,) = tmp_path.glob(f"*jit_{axis}*.after_spmd-partitioning.*.txt")
        text = program.read_text()
        sent = {
            kind: re.findall(rf"= (\w+)\[\d+,\d+\]\S* {kind}\(", text)
            for kind in ("all-gather", "all-reduce")
        }
        assert sent == {"all-gather": gathered, "all-reduce": ["bf16"]}


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"data": 2}, "--mesh.data 2 needs 2 devices, but JAX sees 1"),
        ({"fsdp": 3}, "--mesh.fsdp 3 needs 3 devices"),
        ({"model": 2, "data": 1}, "--mesh.model 2 needs 2 devices"),
    ],
)
def test_more_devices_than_there_are_is_refused(mesh: dict, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        make_mesh(Config(TINY, mesh=MeshConfig(**mesh)))


REFUSALS = {
    "--train.batch-size 12 --train.micro-batch-size 0": "--train.batch-size is 12, but must be a ",
    "--train.micro-batch-size 4": "--train.micro-batch-size is 4, but must be a multiple of the 8",
    "--mesh.model 8": "--mesh.model is 8, but must divide --model.n-head 2",
    "--mesh.fsdp 3": "--mesh.data -1 x --mesh.fsdp 3 uses 6 of the 8 devices",
    "--mesh.data 16": "--mesh.data 16 needs 16 devices, but JAX sees 8",
    "--mesh.fsdp -1": "only one of them can be -1",
    "--mesh.fsdp 0": "--mesh.fsdp is 0",
    "--coordinator here:1": "--coordinator, --processes and --process go",
}


ALL_REFUSALS = """
import sys
from gptjax import train
for flags in sys.argv[2:]:
    try:
        train.main([*sys.argv[1].split(), *flags.split()])
    except SystemExit as stop:
        assert stop.code == 2, stop.code
"""


@pytest.mark.slow
def test_layouts_that_cannot_be_are_refused_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question:\n" * 60)
    common = f"--config configs/debug.py --data.path {text} --run-dir {tmp_path / 'run'} "
    common += "--model.n-head 2 --train.batch-size 16 --train.micro-batch-size 8"
    done = forked.run("-c", ALL_REFUSALS, common, *REFUSALS, n_devices=8)
    assert done.returncode == 0, done.stderr
    for line, (flags, says) in zip(done.stderr.splitlines(), REFUSALS.items(), strict=True):
        assert line.startswith("error: "), flags
        assert says in line, flags
    assert not (tmp_path / "run").exists()


# --- memory


def seed_like(n_layer: int, remat: bool) -> models.GPT:
    config = GPTConfig(n_layer=n_layer, n_head=2, n_embd=32, block_size=64, dropout=0.2)
    return models.GPT(config, VOCAB_SIZE, remat=remat)


def dropped_out_loss(model: models.GPT, params: Any) -> Any:
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (8, 65)).astype(np.int32)
    weights = np.ones((8, 64), np.float32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": weights}
    return training.cross_entropy(model, params, batch, jax.random.key(5), jnp.arange(8))[0]


@cache
def kept_bytes(model: models.GPT) -> int:
    """Of what the forward pass leaves to the backward pass, parameters aside.

    Not of what XLA asks for: its CPU backend computes again what remat says, and frees nothing.
    """
    shapes = jax.eval_shape(lambda: models.init(model, 1))
    backward = jax.eval_shape(lambda p: jax.vjp(partial(dropped_out_loss, model), p)[1], shapes)
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (backward, shapes)]
    return sizes[0] - sizes[1]


@pytest.mark.slow
def test_remat_computes_the_same_and_keeps_less() -> None:
    """Also the same dropout masks, when it computes them again."""
    model, remat = seed_like(2, False), seed_like(2, True)
    params = models.init(model, seed=1)
    gradients = [jax.jit(jax.grad(partial(dropped_out_loss, m)))(params) for m in (model, remat)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), *gradients)
    assert kept_bytes(remat) < 0.2 * kept_bytes(model)


@pytest.mark.slow
def test_the_estimate_of_memory_is_about_right() -> None:
    """Against what the backward pass is handed; by layers, as remat also counts one whole block."""

    @cache
    def work(n_layer: int, remat: bool) -> tuple[float, float]:
        model = seed_like(n_layer, remat)
        train = TrainConfig(batch_size=8, remat=remat)
        config = Config(model.config, train=train, mesh=MeshConfig(data=1))
        optimizer = optim.build(config.optim, 10)
        shapes = jax.eval_shape(lambda: training.init_state(models.init(model, 0), optimizer))
        mesh = make_mesh(config)
        shapes = sharding.with_sharding(shapes, sharding.shardings(shapes, mesh))
        held, work = memory.estimate(config, model, shapes, 8, 64)
        assert held == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        return work - sharding.bytes_per_device(shapes.params), kept_bytes(model)

    for remat in (False, True):
        (few, few_kept), (many, many_kept) = work(2, remat), work(4, remat)
        assert many - few == pytest.approx(many_kept - few_kept, rel=0.3), remat
    estimated, kept = work(4, False)
    assert estimated == pytest.approx(kept, rel=0.3)


def test_out_of_memory_says_what_to_change() -> None:
    flags = r"--train\.micro-batch-size.*--train\.remat.*--mesh\.fsdp"
    with pytest.raises(UserError, match=flags), memory.advice():
        jnp.zeros((1 << 20, 1 << 20, 1 << 10)).block_until_ready()
