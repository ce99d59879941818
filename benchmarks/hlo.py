"""Which collectives a compiled program runs: read out of its HLO text.

XLA's partitioner decides where devices talk; `compiled.as_text()` is where it says so. Collectives
in the body of a loop count once for each of its rounds, where their number is known.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (4, 8, 16, 32, 64)
}

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (?P<shape>.+?) (?P<op>[a-z][\w-]*)\(")
COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|\w+_computation)=%?([\w.-]+)|_computations=\{([^}]*)\}"
)
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Collective:
    """An instruction that sends: on every device `count` times, in groups of devices."""

    kind: str
    bytes: int
    """Of its result on one device; of a reduce-scatter, of its operand."""
    groups: tuple[tuple[int, ...], ...]
    """Which devices talk to each other; of a collective-permute (source, target) pairs."""
    count: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends in `count` runs of a ring over its group."""
        n = len(self.groups[0])
        if self.kind == "collective-permute":
            return self.count * self.bytes
        return self.count * self.bytes * (1 - 1 / n) * (2 if self.kind == "all-reduce" else 1)

    def axes(self, mesh: dict[str, int]) -> str:
        """Along which axes of a mesh, {"data": 2, ...}, the groups lie: "data", "data+fsdp"."""
        places = [np.unravel_index(group, tuple(mesh.values())) for group in self.groups]
        along = [
            axis
            for i, axis in enumerate(mesh)
            if any(len(set(coordinates[i])) > 1 for coordinates in places)
        ]
        return "+".join(along)


def collectives(text: str) -> list[Collective]:
    """Those of an HLO module, in the order in which its entry reaches them."""
    computations, entry = _computations(text)
    header = re.search(r"num_partitions=(\d+)", text)
    n_devices = int(header[1]) if header else 1
    return list(_reached(computations, entry, 1, n_devices))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and which one is the entry."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        start = COMPUTATION.match(line)
        if start and " = " not in line.partition("(")[0]:
            name = start["name"]
            computations[name] = []
            entry = name if start["entry"] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            computations[name].append(line)
    if not entry:
        raise ValueError("no ENTRY: this is not the text of an HLO module")
    return computations, entry


def _reached(
    computations: dict[str, list[str]], name: str, count: int, n_devices: int
) -> Iterator[Collective]:
    """The collectives of a computation that runs `count` times, and of those that it calls."""
    for line in computations[name]:
        instruction = INSTRUCTION.match(line)
        if instruction is None:
            continue
        op = instruction["op"]
        if op.removesuffix("-start") in KINDS:
            if op not in KINDS:
                raise ValueError(f"{op}: asynchronous collectives are not understood")
            groups = _groups(line, n_devices)
            n_bytes = _bytes(instruction["shape"])
            if op == "reduce-scatter":
                n_bytes *= len(groups[0])
            if len(groups[0]) > 1:
                yield Collective(op, n_bytes, groups, count)
        rounds = TRIP_COUNT.search(line) if op == "while" else None
        inner = count * int(rounds[1]) if rounds else count
        for one, several in CALLED.findall(line):
            for called in [one] if one else re.findall(r"[\w.-]+", several):
                yield from _reached(computations, called, inner, n_devices)


def _bytes(shape: str) -> int:
    """Of an array, "f32[8,4]{1,0}", or of all those of a tuple."""
    total = 0
    for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        total += BITS[dtype] * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total


def _groups(line: str, n_devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of devices, in each of the ways that XLA writes them.

    {{0,1},{2,3}}, [2,2]<=[2,2]T(1,0), or mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}: those
    that differ along some axes of a mesh. Raises ValueError for any other.
    """
    if pairs := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line):
        groups = re.findall(r"\{([\d,]+)\}", pairs[1])
        return tuple(tuple(_integers(group)) for group in groups)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        devices = _iota(iota[2]).reshape(_integers(iota[1]))
        return tuple(map(tuple, devices.tolist()))
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\((.*?\]\S*)\))? \{([^}]*)\}", line
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        along = [re.fullmatch(r"'(\w+)'", name) for name in mesh[3].split(",")]
        if all(along):
            devices = _iota(mesh[2]) if mesh[2] else np.arange(n_devices)
            devices = devices.reshape(tuple(sizes.values()))
            axes = [list(sizes).index(name[1]) for name in along if name]
            n = math.prod(devices.shape[axis] for axis in axes)
            devices = np.moveaxis(devices, axes, range(-len(axes), 0)).reshape(-1, n)
            return tuple(map(tuple, devices.tolist()))
    if "replica_groups={}" in line:
        return (tuple(range(n_devices)),)
    raise ValueError(f"groups of devices that are not understood: {line.strip()[:300]}")


def _iota(text: str) -> np.ndarray:
    """[2,4]T(1,0): as many numbers from 0 on, in that shape, its axes in that order."""
    sizes, _, order = text.partition("T")
    devices = np.arange(math.prod(_integers(sizes))).reshape(_integers(sizes))
    return devices.transpose(_integers(order)) if order else devices


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
