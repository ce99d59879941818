"""The train steps, compiled for an H100 that is not there: what must not be in them, and bounds.

`make aot` runs them. They want JAX's CUDA plugin (the extra `aot`), and are skipped without it.
"""

import itertools
import math

import pytest

from benchmarks import compile_for

WHY_NOT = compile_for.missing()
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    # JAX 0.11 announces that Pallas's Triton backend will go; kernels/attention.py says so, too.
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning"),
]


def has_square(hlo: str, n: int) -> bool:
    """Whether some array has two adjacent axes of length n, and others: scores of heads or rows.

    One alone, (n, n), is the one-hot matrix that looks positions up.
    """
    shapes = {shape for _, shape in compile_for.shapes_in(hlo)}
    return any((n, n) in itertools.pairwise(shape) and math.prod(shape) > n * n for shape in shapes)


def test_square_arrays_are_found():
    assert has_square("%x = bf16[64,6,256,256]{3,2,1,0} fusion(", 256)
    assert not has_square("%x = bf16[64,256,6,256]{3,2,1,0} fusion(", 256)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gigabytes", "kernels", "mebibytes"),
    [
        # Commit 1bb5e41: 17.4 GB, 630 kernels, 1,752 MiB; and 20.4 GB, 760 kernels.
        ("gpt", 9.0, 270, 1050),
        ("gpt_fast", 7.2, 430, 800),
        ("gpt2_124m", 55.0, 610, 9600),
    ],
)
def test_a_step_on_an_h100_moves_few_bytes(name, gigabytes, kernels, mebibytes):
    config = compile_for.read(name)
    lowered = compile_for.lower(config)
    figures, hlo = compile_for.measure(lowered, compile_for.GPU_OPTIONS)
    assert not has_square(hlo, config.model.block_size)
    assert figures["gb_per_step"] <= gigabytes
    assert figures["kernels_per_step"] <= kernels
    assert figures["temporaries_mib"] <= mebibytes
