"""What the batches of all data sets share: their type, their rows, their random streams."""

import functools

import numpy as np

Batch = dict[str, np.ndarray]
"""Arrays by name: tokens, targets, loss_weights; with an encoder also source, source_mask; what
the heads learn that only training uses."""

ALL = slice(None)
"""All rows of a batch. With several processes, each one makes only its own rows."""

# Second numbers of random seeds (seed, stream, step): streams must not overlap.
TRAINING, SAMPLED_EVALUATION = 0, 1


def bucket_batch(
    sizes: tuple[int, ...], batch_size: int, seed: int, step: int
) -> tuple[int, np.ndarray]:
    """The bucket that a step's batch is taken from, and which of its examples (B,).

    sizes: the number of examples of each bucket. Every epoch takes every example at least once,
    in a new order. The last batch of a bucket is filled up with the bucket's first examples.
    """
    epoch, number = divmod(step, sum(-(-size // batch_size) for size in sizes))
    return _epoch(sizes, batch_size, seed, epoch)[number]


@functools.lru_cache(maxsize=2)
def _epoch(
    sizes: tuple[int, ...], batch_size: int, seed: int, epoch: int
) -> list[tuple[int, np.ndarray]]:
    """(bucket, examples) of every batch of an epoch, in their order."""
    rng = np.random.default_rng((seed, TRAINING, epoch))
    batches = []
    for bucket, size in enumerate(sizes):
        n_batches = -(-size // batch_size)
        examples = np.resize(rng.permutation(size), (n_batches, batch_size))
        batches += [(bucket, row) for row in examples]
    return [batches[i] for i in rng.permutation(len(batches))]
