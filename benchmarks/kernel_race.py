"""Times train steps with and without the GPU kernels, in turns, within one process.

    python -m benchmarks.kernel_race --out $OUT/kernel_race.json [--seconds 230]
    JAX_PLATFORMS=cpu python -m benchmarks.kernel_race --tiny --out /tmp/race.json

On a GPU, in this order, each written to the JSON as soon as it is known:

    checks      kernels against plain jnp on the device: outputs, gradients, masks
    compiled    seconds that each program took to lower and to compile, all side by side
    pieces      microseconds of the kernels alone, for several tilings
    steps       milliseconds per step of each variant: the median over rounds, in which the
                variants take turns of a whole dispatch each

Weights and tokens are random. --tiny runs a part of it on a CPU in a minute, with interpreted
kernels: it tries the script, its figures mean nothing.
"""

import argparse
import contextlib
import dataclasses
import json
import runpy
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks import compile_for
from gptjax import models, optim, training
from gptjax.config import Config
from gptjax.kernels import attention, choice, dropout, layer_norm
from gptjax.kernels.attention_tiles import Options, Tiling
from gptjax.kernels.choice import Choice
from gptjax.scale import devices

VOCAB_SIZE = 65
AUTOMATIC = Choice()
START = time.perf_counter()
PARAMS: dict[str, Any] = {}
"""Fresh parameters of each config."""
GRAPHS = {"xla_gpu_graph_min_graph_size": 1, "xla_gpu_enable_latency_hiding_scheduler": True}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to compile a config's train step. `threefry`: dropout as it was before."""

    name: str
    config: str = "gpt"
    dropout: float | None = None
    choice: Choice = AUTOMATIC
    threefry: bool = False
    options: tuple[tuple[str, Any], ...] = ()


KERNELS, PLAIN = Choice("kernel", True), Choice("plain", False)
TRITON = (("xla_gpu_enable_triton_gemm", True),)
# By worth, but those that tune matrix products (triton gemm) compile longest and start early.
VARIANTS = [
    Variant("before", choice=PLAIN, threefry=True, options=TRITON),
    Variant("kernels, triton gemm", choice=KERNELS, options=TRITON),
    Variant("kernels", choice=KERNELS),
    Variant("kernels, no dropout", dropout=0.0, choice=KERNELS),
    Variant("cudnn, no dropout", dropout=0.0, choice=Choice("cudnn", True)),
    Variant("kernels, plain norms", choice=Choice("kernel", False)),
    Variant("kernels, graphs", choice=KERNELS, options=tuple(GRAPHS.items())),
    Variant("fast: kernels", "gpt_fast", choice=KERNELS),
    Variant("fast: kernels, triton gemm", "gpt_fast", choice=KERNELS, options=TRITON),
    Variant("fast: before", "gpt_fast", choice=PLAIN, threefry=True, options=TRITON),
    Variant("kernels 128/64/64", choice=Choice("kernel", True, Tiling(128, 64, 64, 8, 4, 2, 2))),
    Variant("kernels 8 warps", choice=Choice("kernel", True, Tiling(64, 64, 64, 4, 8, 2, 2))),
    Variant("kernels 3 stages", choice=Choice("kernel", True, Tiling(64, 64, 64, 4, 4, 3, 3))),
    Variant("plain, philox", choice=PLAIN),
]
TINY = ("before", "kernels", "fast: kernels")
TILINGS = [
    Tiling(64, 64, 64, 4, 4, 2, 2),
    Tiling(64, 64, 64, 4, 4, 1, 1),
    Tiling(64, 64, 64, 4, 4, 3, 3),
    Tiling(64, 64, 64, 8, 8, 2, 2),
    Tiling(64, 32, 32, 4, 4, 2, 2),
    Tiling(128, 64, 128, 8, 8, 2, 2),
    Tiling(128, 64, 128, 4, 8, 1, 1),
    Tiling(128, 128, 32, 8, 2, 2, 2),
    Tiling(64, 128, 64, 4, 2, 2, 2),
]


def threefry_dropout(
    x: Array, streams_B2: Array, dropped: int, first: int = 0, n_t: int | None = None
) -> Array:
    """Dropout as of commit 1bb5e41: bytes of JAX's own generator, kept for the backward pass."""
    *inner, width = x.shape[1:]

    def words(stream: Array) -> Array:
        return jax.random.bits(jax.random.wrap_key_data(stream), (*inner, -(-width // 4)))

    bytes_ = lax.bitcast_convert_type(jax.vmap(words)(streams_B2), jnp.uint8)
    bytes_ = bytes_.reshape(*x.shape[:-1], -1)[..., :width]
    return jnp.where(bytes_ < dropped, 0, x * (256 / (256 - dropped)))


@contextlib.contextmanager
def traced_as(variant: Variant, tiny: bool) -> Iterator[None]:
    chosen = variant.choice._replace(interpret=tiny)
    with contextlib.ExitStack() as stack:
        stack.enter_context(choice.using(chosen))
        if variant.threefry:
            stack.enter_context(mock.patch.object(dropout, "dropout", threefry_dropout))
        yield


def config_of(variant: Variant, tiny: bool) -> Config:
    path = Path(__file__).parent.parent / "configs" / f"{variant.config}.py"
    c: Config = runpy.run_path(str(path))["config"]
    model: Any = c.model
    if variant.dropout is not None:
        model = dataclasses.replace(model, dropout=variant.dropout)
    if tiny:
        model = dataclasses.replace(model, n_layer=1, n_head=2, n_embd=32, block_size=32)
        train = dataclasses.replace(c.train, batch_size=2)
        return dataclasses.replace(c, model=model, train=train)
    return dataclasses.replace(c, model=model)


def n_steps_of(tiny: bool) -> int:
    return 2 if tiny else devices.STEPS_PER_DISPATCH


class Race:
    """A variant's compiled train steps and their state."""

    def __init__(self, variant: Variant, tiny: bool) -> None:
        self.variant = variant
        c = config_of(variant, tiny)
        self.n_steps = n_steps_of(tiny)
        dtype = jnp.float32 if tiny else jnp.bfloat16
        shape = (self.n_steps, c.train.batch_size, c.model.block_size + 1)
        tokens = jax.random.randint(jax.random.key(0), shape, 0, VOCAB_SIZE)
        self.batches = {
            "tokens": tokens[..., :-1],
            "targets": tokens[..., 1:],
            "loss_weights": jnp.ones(tokens[..., 1:].shape),
        }
        start = time.perf_counter()
        with traced_as(variant, tiny):
            model = models.build(c.model, VOCAB_SIZE, dtype)
            optimizer = optim.build(c.optim, c.train.max_steps)
            if variant.config not in PARAMS:
                with choice.using(PLAIN):
                    PARAMS[variant.config] = models.init(model, 0)
            params = jax.tree.map(jnp.copy, PARAMS[variant.config])  # the steps take it over
            self.state = training.init_state(params, optimizer)
            steps = training.make_train_steps(model, optimizer, c.train.batch_size, 0)
            lower: Any = steps
            self.lowered = lower.lower(self.state, self.batches, self.n_steps)
        self.lower_seconds = time.perf_counter() - start
        self.rest = (self.n_steps,) if devices.on_cpu() else ()
        self.ms: list[float] = []
        self.losses: list[float] = []

    def compile(self, tiny: bool) -> float:
        """Seconds that it took."""
        options: dict[str, Any] = {}
        if not tiny:
            options = {**compile_for.GPU_OPTIONS, **dict(self.variant.options)}
        start = time.perf_counter()
        self.compiled = self.lowered.compile(compiler_options=options)
        return time.perf_counter() - start

    def dispatch(self) -> None:
        start = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.batches, *self.rest)
        losses = jax.device_get(metrics.loss)
        self.ms.append(1e3 * (time.perf_counter() - start) / self.n_steps)
        self.losses += [float(losses[0]), float(losses[-1])]

    def record(self) -> dict[str, Any]:
        """The first dispatch warms up; it counts for the loss alone."""
        timed = self.ms[1:]
        return {
            "ms_per_step": statistics.median(timed) if timed else None,
            "fastest": min(timed, default=None),
            "rounds": timed,
            "loss_first_and_50th": self.losses[:2],
        }


def difference(a: Any, b: Any) -> float:
    """Largest error of a pytree a, of the largest number of b."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    errors = [
        float(jnp.max(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))) / jnp.max(jnp.abs(y)))
        for x, y in pairs
    ]
    return max(errors)


def check_attention(tiny: bool) -> dict[str, Any]:
    """Kernels in the dtype of training against plain jnp in float32."""
    dtype = jnp.float32 if tiny else jnp.bfloat16
    cases = {
        "causal": ((64, 64, 64), True, False, 0),
        "causal, dropout": ((64, 64, 16) if tiny else (256, 256, 64), True, False, 51),
        "odd length and width, padding, dropout": ((77, 77, 40), False, True, 51),
        "cross, padding, dropout": ((33, 90, 64), False, True, 51),
    }
    results = {}
    for name, ((n_t, n_s, width), causal, padded, dropped) in cases.items():
        keys = jax.random.split(jax.random.key(1), 3)
        if n_t == n_s:
            sources = (jax.random.normal(keys[0], (2, n_t, 3, 2, width), dtype),)
        else:
            q = jax.random.normal(keys[0], (2, n_t, 1, 2, width), dtype)
            sources = (q, jax.random.normal(keys[1], (2, n_s, 2, 2, width), dtype))
        weights = jax.random.normal(keys[2], (2, n_t, 2, width))
        streams = dropout.row_streams(jax.random.key(2), jnp.arange(2))
        mask = jnp.arange(n_s) < jnp.array([[n_s // 2], [n_s]]) if padded else None
        options = Options(causal, dropped, interpret=tiny)

        def run(
            f: Callable[..., Array],
            inputs: Any,
            streams=streams,
            mask=mask,
            options=options,
            weights=weights,
        ) -> Any:
            def total(inputs: Any) -> tuple[Array, Array]:
                y = f(inputs, streams, mask, options).astype(jnp.float32)
                return jnp.sum(y * weights), y

            with jax.default_matmul_precision("highest"):
                (_, y), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(inputs)
            return y, grads

        exact = jax.tree.map(lambda x: x.astype(jnp.float32), sources)
        error = difference(run(attention.attention, sources), run(attention.plain_attention, exact))
        results[name] = {"error": error, "ok": error < (1e-4 if tiny else 3e-2)}
    return results


def check_norm(tiny: bool) -> dict[str, Any]:
    results = {}
    x = jax.random.normal(jax.random.key(3), (37, 384)) * 2 + 1
    x = x.astype(jnp.float32 if tiny else jnp.bfloat16)
    scale, bias = jnp.linspace(0.5, 2, 384), jnp.linspace(-1, 1, 384)
    for center in (True, False):
        options = layer_norm.Options(center, interpret=tiny)

        def plain(x: Array, s: Array, b: Array, center=center) -> Array:
            return layer_norm.plain_norm(x, s, b if center else None, center, jnp.float32)

        def kernel(x: Array, s: Array, b: Array, center=center, options=options) -> Array:
            return layer_norm.norm(x, s, b if center else None, options)

        def run(f: Callable[..., Array], x: Array) -> Any:
            def total(*inputs: Array) -> Array:
                return jnp.sum(jnp.sin(f(*inputs).astype(jnp.float32)))

            arguments = (0, 1, 2) if center else (0, 1)  # noqa: B023
            return f(x, scale, bias), jax.jit(jax.grad(total, arguments))(x, scale, bias)

        error = difference(run(kernel, x), run(plain, x.astype(jnp.float32)))
        results["layer norm" if center else "rms norm"] = {
            "error": error,
            "ok": error < (1e-4 if tiny else 3e-2),
        }
    return results


def check_mask() -> dict[str, Any]:
    """The device's masks against the CPU's, and Philox against Random123's known answer."""

    def mask() -> Array:
        streams = dropout.row_streams(jax.random.key(7), jnp.arange(3))
        return dropout.keep_mask(streams, (3, 2, 40, 24), 51)

    here = jax.device_get(jax.jit(mask)())
    with jax.default_device(jax.devices("cpu")[0]):
        there = jax.device_get(jax.jit(mask)())
    words = [jnp.uint32(word) for word in (0x243F6A88, 0x85A308D3, 0x13198A2E)]
    answer = [int(word) for word in jax.jit(lambda: dropout.philox(*words, 10))()]
    return {
        "same mask as the CPU": {"ok": bool((here == there).all()), "kept": float(here.mean())},
        "philox2x32-10": {"ok": answer == [0xDD7CE038, 0xF62A4C12]},
    }


def pieces(tiny: bool) -> dict[str, Any]:
    """Programs that repeat one kernel in the shapes of configs/gpt.py, lowered, by name."""
    dtype = jnp.float32 if tiny else jnp.bfloat16
    shape = (1, 64, 3, 2, 16) if tiny else (64, 256, 3, 6, 64)
    qkv = jax.random.normal(jax.random.key(4), shape, dtype)
    streams = dropout.row_streams(jax.random.key(5), jnp.arange(shape[0]))
    y = jnp.zeros((*shape[:2], *shape[3:]), dtype)
    x = jax.random.normal(jax.random.key(6), (*shape[:2], shape[3] * shape[4]), dtype)
    scale = jnp.ones(x.shape[-1])
    lse = jnp.zeros((shape[0], shape[3], shape[1]))
    repeats = 2 if tiny else 50
    made: dict[str, Any] = {}

    def add(name: str, f: Callable[..., Array], *inputs: Array) -> None:
        def repeat(*inputs: Array) -> Array:
            def body(i: Any, total: Array) -> Array:
                # Something that differs in each round, or XLA would compute it once.
                streams_i = streams + lax.convert_element_type(i, jnp.uint32)
                out = f(streams_i, *inputs)
                return total + out.reshape(-1)[0].astype(jnp.float32)

            return lax.fori_loop(0, repeats, body, jnp.float32(0))

        made[name] = (jax.jit(repeat).lower(*inputs), inputs, repeats)

    for tiling in TILINGS[: 1 if tiny else None]:
        for dropped in (51,) if tiny else (51, 0):
            options = Options(True, dropped, tiling, tiny)
            label = f"{tuple(tiling)} dropped {dropped}"

            def forward(s: Array, qkv: Array, options=options) -> Array:
                return attention._forward((qkv,), s, None, options)[0]

            def backward(s: Array, qkv: Array, y: Array, lse: Array, options=options) -> Array:
                residuals = ((qkv,), s, None, y, lse)
                return attention._attention_backward(options, residuals, y)[0][0]

            add(f"attention forward {label}", forward, qkv)
            add(f"attention backward {label}", backward, qkv, y, lse)
    for rows, warps in ((4, 4), (1, 4), (8, 4), (4, 2), (8, 8), (2, 1))[: 1 if tiny else None]:
        options = layer_norm.Options(True, rows, warps, tiny)

        def norm(s: Array, x: Array, options=options) -> Array:
            x = lax.optimization_barrier((x, s))[0]  # new in each round
            return layer_norm.norm(x, scale, scale, options)

        def norm_backward(s: Array, x: Array, options=options) -> Array:
            x = lax.optimization_barrier((x, s))[0]
            return layer_norm._backward(options, (x, scale, True), x)[0]

        add(f"norm forward rows {rows} warps {warps}", norm, x)
        add(f"norm backward rows {rows} warps {warps}", norm_backward, x)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=230, help="end by itself after about this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=14)
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    tiny = args.tiny
    deadline = START + args.seconds
    record: dict[str, Any] = {"device": devices.describe(), "jax": jax.__version__}

    def save(**parts: Any) -> None:
        record.update(parts, seconds=round(time.perf_counter() - START, 1))
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{record['seconds']:6.1f} s  {', '.join(parts)}", flush=True)

    save(variants=[variant.name for variant in VARIANTS])
    pool = ThreadPoolExecutor(1 if tiny else args.threads)
    races: list[tuple[Race, Future[float]]] = []
    failed: dict[str, str] = {}
    for variant in VARIANTS:
        if args.only not in variant.name or (tiny and variant.name not in TINY):
            continue
        try:
            race = Race(variant, tiny)
            races.append((race, pool.submit(race.compile, tiny)))
        except Exception as error:  # the others shall still be measured
            failed[variant.name] = repr(error)[:500]
    save(lowered={race.variant.name: race.lower_seconds for race, _ in races}, failed=failed)

    small = pieces(tiny)
    compiled_pieces = {name: pool.submit(made[0].compile) for name, made in small.items()}
    save(pieces_lowered=len(small))
    checks: dict[str, Any] = {}
    for check in (check_mask, lambda: check_attention(tiny), lambda: check_norm(tiny)):
        try:
            checks |= check()
        except Exception as error:
            checks[f"check {len(checks)}"] = {"ok": False, "error": repr(error)[:500]}
    save(checks=checks)
    for name, result in checks.items():
        print(f"   {'ok ' if result['ok'] else 'BAD'} {name}  {result}", flush=True)

    futures = [future for _, future in races] + list(compiled_pieces.values())
    wait(futures, timeout=max(1.0, deadline - 60 - time.perf_counter()))
    ready: list[Race] = []
    for race, future in races:
        name = race.variant.name
        if not future.done():
            failed[name] = "not compiled in time"
        elif error := future.exception():
            failed[name] = repr(error)[:500]
        else:
            ready.append(race)
    seconds = {r.variant.name: f.result() for r, f in races if r in ready}
    save(compiled=seconds, failed=failed)

    micro: dict[str, Any] = {}
    for name, future in compiled_pieces.items():
        _, inputs, repeats = small[name]
        if time.perf_counter() > deadline - 45:
            break
        if not future.done() or future.exception():
            error = repr(future.exception())[:300] if future.done() else "not compiled in time"
            micro[name] = {"failed": error}
            continue
        us = []
        for _ in range(4):
            start = time.perf_counter()
            future.result()(*inputs).block_until_ready()
            us.append(1e6 * (time.perf_counter() - start) / repeats)
        micro[name] = {"us": min(us[1:])}
        print(f"   {min(us[1:]):8.1f} us  {name}", flush=True)
    save(pieces=micro)

    for _ in range(args.rounds + 1):
        for race in ready[:]:
            try:
                race.dispatch()
            except Exception as error:
                failed[race.variant.name] = repr(error)[:500]
                ready.remove(race)
        save(steps={race.variant.name: race.record() for race in ready}, failed=failed)
        if time.perf_counter() > deadline - 12:
            break
    for race in ready:
        r = race.record()
        print(
            f"   {r['ms_per_step'] or 0:8.3f} ms  {race.variant.name:32s} "
            f"{r['loss_first_and_50th']}"
        )
    for name, why in failed.items():
        print(f"   failed   {name}: {why}")
    pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
