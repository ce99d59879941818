"""From one device to thousands, on paper: memory, communication, and the MFU they allow.

Everything here is arithmetic on data sheets; nothing is measured. docs/scaling.md says in words
what the functions below compute. Bytes, seconds, FLOP/s; a device is one GPU of a node of eight.
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from benchmarks.race import flops_per_token
from gptjax import models
from gptjax.config import GPTConfig
from gptjax.scale import memory as memory_of

# Of an H100 SXM and an H200: dense bfloat16 (half of the data sheet's figure, which is "with
# sparsity"), one direction of NVLink, of one 400 Gb/s InfiniBand port, of PCIe 5.0 x16.
PEAK = 989e12
NVLINK, INFINIBAND, PCIE = 450e9, 50e9, 64e9
LINKS = {
    "NVLink, inside a node of 8": NVLINK,
    "InfiniBand, 8 GPUs of a node together": 8 * INFINIBAND,
    "PCIe 5.0 x16, no NVLink": PCIE,
    "InfiniBand, one GPU of a node": INFINIBAND,
}
NODE = 8
# JAX takes three quarters of a device's memory at its start.
MEMORY = {"H100": 0.75 * 80e9, "H200": 0.75 * 141e9}

# Bytes of each parameter: float32 master weight, Adam's two moments, summed gradient; with several
# micro-batches also the gradient of the current one. At work it is bfloat16.
STATE, ANOTHER_GRADIENT, AT_WORK = 4 + 8 + 4, 4, 2
# Bytes of what is sent: matrices are rounded first, and their gradients come out of matmuls so.
WEIGHT_SENT, GRADIENT_SENT, ACTIVATION_SENT = 2, 2, 2


@dataclass(frozen=True)
class Size:
    """A model, and how many sequences a step takes over all devices."""

    name: str
    model: GPTConfig
    vocab_size: int
    batch_size: int

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.model.block_size


def gpt2(n_layer: int, n_head: int, n_embd: int, block_size: int = 1024) -> GPTConfig:
    """GPT-2's architecture (Radford et al. 2019), without dropout."""
    return GPTConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        block_size=block_size,
        dropout=0.0,
        activation="gelu_tanh",
        attention_bias=True,
        tie_embeddings=True,
    )


# Batches: of configs/gpt.py, configs/gpt2_124m.py, GPT-3 1.3B (Brown et al. 2020, table 2.1) and
# Llama 2 7B (Touvron et al. 2023, table 1).
SIZES = [
    Size("10 M", GPTConfig(), 65, 64),
    Size("124 M", gpt2(12, 12, 768), 50_257, 512),
    Size("1.5 B", gpt2(48, 25, 1600), 50_257, 1024),
    Size("8 B", gpt2(38, 32, 4096, 2048), 128_256, 2048),
]
DEVICES = [1, 8, 64, 512, 4096]


@functools.cache
def parameters(model: GPTConfig, vocab_size: int) -> tuple[int, int]:
    """How many there are in all, and how many of them in one block: counted, on shapes alone."""

    def count(n_layer: int) -> int:
        shallow = models.GPT(dataclasses.replace(model, n_layer=n_layer), vocab_size)
        return models.count(jax.eval_shape(lambda: models.init(shallow, 0)))

    one = count(1)
    block = count(2) - one
    return one + (model.n_layer - 1) * block, block


@dataclass(frozen=True)
class Layout:
    """A mesh of data x fsdp x model devices, and how a device goes through its share of a batch."""

    data: int
    fsdp: int
    model: int
    n_micro: int = 1
    remat: bool = False

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.model

    @property
    def name(self) -> str:
        return f"{self.data}x{self.fsdp}x{self.model}"


def activation_bytes(size: Size, n_model: int = 1, remat: bool = False) -> float:
    """What the blocks keep of one sequence for the backward pass, in bfloat16."""
    t = size.model.block_size
    return t * memory_of.activation_bytes(size.model, t, AT_WORK, n_model, remat)


def logits_bytes(size: Size, n_model: int = 1) -> float:
    """Of one sequence."""
    return size.model.block_size * memory_of.logits_bytes(size.vocab_size, n_model)


def memory(size: Size, layout: Layout) -> float:
    """Bytes in one device while it trains."""
    n_parameters, block = parameters(size.model, size.vocab_size)
    per_parameter = STATE + ANOTHER_GRADIENT * (layout.n_micro > 1)
    state = per_parameter * n_parameters / (layout.fsdp * layout.model)
    # Weights at work: all or, gathered when needed, those of two blocks and what is in no block.
    at_work = AT_WORK * n_parameters
    if layout.fsdp > 1:
        outside = n_parameters - size.model.n_layer * block
        at_work = AT_WORK * (outside + 2 * block)
    sequences = size.batch_size / (layout.data * layout.fsdp * layout.n_micro)
    blocks = activation_bytes(size, layout.model, layout.remat)
    return state + at_work / layout.model + sequences * (blocks + logits_bytes(size, layout.model))


def bandwidth(stride: int, n: int) -> float:
    """Bytes per second and device in a ring over n devices whose numbers are `stride` apart."""
    if stride * n <= NODE:
        return NVLINK
    per_node = min(n, max(1, NODE // stride))  # which send through a port each
    return min(NVLINK, per_node * INFINIBAND)


@dataclass(frozen=True)
class Cost:
    """Seconds of a step: matmuls at PEAK, and the bytes of each axis over its links.

    data and fsdp can hide behind the matmuls; what the model axis sends is waited for.
    """

    compute: float
    data: float
    fsdp: float
    model: float

    @property
    def communication(self) -> float:
        return self.data + self.fsdp + self.model

    @property
    def step(self) -> float:
        return max(self.compute, self.data + self.fsdp) + self.model


def sent(
    size: Size,
    layout: Layout,
    weight: int = WEIGHT_SENT,
    gradient: int = GRADIENT_SENT,
    activation: int = ACTIVATION_SENT,
) -> dict[str, float]:
    """Bytes that a device sends in a step, axis by axis: rings move (n - 1) / n of an array.

    data: an all-reduce of the gradients, which is twice that. fsdp: an all-gather of the weights
    for the forward and one for the backward pass, a reduce-scatter of the gradients. model: four
    all-reduces of (B, T, D) for each block, two more with remat, and two for the embedding and the
    logits. What data and fsdp send they send in every micro-batch.
    """
    n_parameters, _ = parameters(size.model, size.vocab_size)
    share = {axis: 1 - 1 / getattr(layout, axis) for axis in ("data", "fsdp", "model")}
    of_data = 2 * gradient * n_parameters / (layout.fsdp * layout.model)
    of_fsdp = (2 * weight + gradient) * n_parameters / layout.model
    tokens = size.batch_tokens / (layout.data * layout.fsdp)
    n_reductions = (6 if layout.remat else 4) * size.model.n_layer + 2
    of_model = n_reductions * 2 * activation * tokens * size.model.n_embd
    return {
        "data": layout.n_micro * share["data"] * of_data,
        "fsdp": layout.n_micro * share["fsdp"] * of_fsdp,
        "model": share["model"] * of_model,
    }


def cost(size: Size, layout: Layout) -> Cost:
    operations = flops_per_token(size.model, size.vocab_size) * size.batch_tokens
    if layout.remat:
        operations *= 4 / 3  # a second forward pass, half of a backward pass
    of = sent(size, layout)
    return Cost(
        operations / layout.devices / PEAK,
        of["data"] / bandwidth(layout.fsdp * layout.model, layout.data),
        of["fsdp"] / bandwidth(layout.model, layout.fsdp),
        of["model"] / bandwidth(1, layout.model),
    )


def mfu_bound(size: Size, layout: Layout) -> float:
    """Model FLOPs utilisation (Chowdhery et al. 2022) if nothing else cost any time."""
    operations = flops_per_token(size.model, size.vocab_size) * size.batch_tokens
    return operations / layout.devices / PEAK / cost(size, layout).step


def layouts(size: Size, n_devices: int) -> Iterator[Layout]:
    """Every mesh of powers of two that fits the batch, and no model axis past a node."""
    powers = [2**i for i in range(n_devices.bit_length())]
    for n_model in powers:
        if n_model > NODE or size.model.n_head % n_model or n_devices % n_model:
            continue
        for n_fsdp in powers:
            rows = n_devices // n_model
            if rows % n_fsdp or size.batch_size % rows:
                continue
            most = size.batch_size // rows
            for n_micro in (2**i for i in range(most.bit_length())):
                for remat in (False, True):
                    yield Layout(rows // n_fsdp, n_fsdp, n_model, n_micro, remat)


def choose(size: Size, n_devices: int, device: str = "H100") -> Layout | None:
    """The fastest layout that fits a device's memory; of those within 2 %, what sends least."""
    fits = [one for one in layouts(size, n_devices) if memory(size, one) <= MEMORY[device]]

    if not fits:
        return None
    best = min(cost(size, one).step for one in fits)
    level = [one for one in fits if cost(size, one).step <= 1.02 * best]
    return min(level, key=lambda one: (cost(size, one).communication, one.fsdp, one.n_micro))


def tokens_to_hide(link: float, layout: str) -> float:
    """Tokens per device and micro-batch from which `data` or `fsdp` hides behind the matmuls.

    6 P t / PEAK >= bytes per parameter * P / link, P parameters and t tokens.
    """
    per_parameter = {"data": 2 * GRADIENT_SENT, "fsdp": 2 * WEIGHT_SENT + GRADIENT_SENT}[layout]
    return per_parameter * PEAK / (6 * link)


def model_axis_share(width: int, n_model: int, link: float = NVLINK) -> float:
    """Seconds of a block's all-reduces over seconds of its matmuls (width D, model axis m).

    4 * 2 (m - 1) / m * 2 D / link over 6 * 12 D^2 / (m PEAK), per token.
    """
    return 16 * (n_model - 1) * PEAK / (72 * width * link)


# --- tables of docs/scaling.md


def memory_table() -> str:
    """What each size needs, before anything is divided."""
    lines = [
        "| model | layers x width, block | parameters | state | activations of a sequence | "
        "with remat | logits |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        c = size.model
        n_parameters, _ = parameters(c, size.vocab_size)
        cells = [
            size.name,
            f"{c.n_layer} x {c.n_embd}, {c.block_size}",
            f"{n_parameters / 1e6:,.1f} M",
            gigabytes(STATE * n_parameters),
            gigabytes(activation_bytes(size)),
            gigabytes(activation_bytes(size, remat=True)),
            gigabytes(logits_bytes(size)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def links_table() -> str:
    """From how many tokens on data and fsdp hide, link by link."""
    lines = ["| links | bytes/s | data hides from | fsdp hides from |", "|---|---|---|---|"]
    for name, link in LINKS.items():
        cells = [name, f"{link / 1e9:.0f} GB/s"]
        cells += [f"{tokens_to_hide(link, axis):,.0f} tokens" for axis in ("data", "fsdp")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def model_axis_table() -> str:
    """How much longer a step gets by what the model axis sends."""
    lines = ["| width | model 2 | model 4 | model 8 | 16, two nodes |", "|---|---|---|---|---|"]
    for width in (384, 768, 1600, 4096, 8192):
        shares = [model_axis_share(width, n) for n in (2, 4, 8)]
        shares.append(model_axis_share(width, 16, bandwidth(1, 16)))
        lines.append(f"| {width:,} | {' | '.join(f'+{share:.0%}' for share in shares)} |")
    return "\n".join(lines)


def plan_table(device: str = "H100") -> str:
    """The fastest layout of each model on each number of devices."""
    lines = [
        "| model | devices | data x fsdp x model | micro-batches | remat | memory | matmuls | "
        "communication | MFU at most | 10^9 tokens in |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        for n_devices in DEVICES:
            start = f"| {size.name} | {n_devices:,} |"
            best = choose(size, n_devices, device)
            if best is None:
                few = not any(layouts(size, n_devices))
                why = "more devices than sequences" if few else "does not fit"
                lines.append(f"{start} {why} | | | | | | | |")
                continue
            seconds = cost(size, best)
            cells = [
                best.name,
                f"{best.n_micro}",
                "yes" if best.remat else "",
                gigabytes(memory(size, best)),
                f"{1e3 * seconds.compute:,.2f} ms",
                f"{1e3 * seconds.communication:,.2f} ms",
                f"{mfu_bound(size, best):.0%}",
                duration(1e9 / size.batch_tokens * seconds.step),
            ]
            lines.append(f"{start} {' | '.join(cells)} |")
    return "\n".join(lines)


def gigabytes(n: float) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def tables(device: str = "H100") -> str:
    return "\n\n".join([memory_table(), links_table(), model_axis_table(), plan_table(device)])
