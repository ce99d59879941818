"""The data set of a configuration, the batches of several training steps, and their prefetching.

Every data set has `train`, `val`, `tokenizer`, `source`, `sha256`, and makes one batch per step.
Texts are in texts.py, pairs in pairs.py, speech in speech.py.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from gptjax.config import Config, GPTConfig, TextDataConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig, SpeechDataConfig
from gptjax.data import pairs, speech, texts
from gptjax.data.batches import ALL, Batch
from gptjax.data.pairs import PairData
from gptjax.data.speech import SpeechData
from gptjax.data.texts import TextData
from gptjax.data.tokenizer import Tokenizer

Data = TextData | PairData | SpeechData
AHEAD_WEIGHT = 0.4
"""Of the loss of each head that predicts further ahead, at the first step."""
K = TypeVar("K")
V = TypeVar("V")


def load(config: Config, tok: Tokenizer | None = None, to_train: bool = True) -> Data:
    """Reads, or downloads, and tokenizes the data of a configuration.

    Uses `tok`, or makes the tokenizer that config.data names. What only training needs
    (SpeechDataConfig.extra_clips) is left out if not to_train. Raises UserError for data that the
    model cannot be trained on.
    """
    if not to_train and isinstance(config.data, SpeechDataConfig):
        recorded = dataclasses.replace(config.data, extra_clips=0)
        config = dataclasses.replace(config, data=recorded)
    match config.model:
        case EncoderDecoderConfig():
            return pairs.load(config, tok)
        case SpeechConfig():
            return speech.load(config, tok)
        case _:
            assert isinstance(config.data, TextDataConfig)
            return texts.load(config.data, config.model.block_size, tok)


def training_batches(
    data: Data, config: Config, steps: range, steps_per_dispatch: int, rows: slice = ALL
) -> Batch:
    """These rows of the batches of these steps, leaves (steps_per_dispatch, B, ...).

    Fewer steps are padded with zeros. Those have loss weight zero.
    """
    batches = [data.batch(config, step, rows) | _ahead_weight(config, step, rows) for step in steps]
    stacked = {}
    for name, leaf in batches[0].items():
        stacked[name] = np.zeros((steps_per_dispatch, *leaf.shape), leaf.dtype)
        np.stack([batch[name] for batch in batches], out=stacked[name][: len(batches)])
    return stacked


def _ahead_weight(config: Config, step: int, rows: slice) -> Batch:
    """The weight (B,) of the loss of the heads that predict further ahead, if there are any.

    It falls to zero at the last step, so that a model ends with training on the next token
    alone.
    """
    if not isinstance(config.model, GPTConfig) or not config.model.predict_ahead:
        return {}
    weight = AHEAD_WEIGHT * max(0.0, 1 - step / config.train.max_steps)
    n_rows = len(range(config.train.batch_size)[rows])
    return {"ahead_weight": np.full(n_rows, weight, np.float32)}


def prefetch(make: Callable[[K], V], keys: Iterable[K]) -> Generator[V]:
    """Yields make(key) for every key, in order, each made in one background thread.

    While the caller uses an item, the next one is made, and no further key is taken. Keys are
    taken in the caller's thread, so they may come from a generator that reads the caller's state.
    An exception of `make` is raised in place of its item. The thread ends with the generator:
    exhaust it or close it (contextlib.closing).
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        current: Future[V] | None = None
        for key in keys:
            upcoming = thread.submit(make, key)
            if current:
                yield current.result()
            current = upcoming
        if current:
            yield current.result()
