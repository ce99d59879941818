"""What to train on, as batches that are pure functions of (seed, step).

A data set has `train`, `val`, `tokenizer`, `source`, `sha256` and makes its batches one by one;
what they have in common stands here. Texts are cut in texts.py, pairs padded in pairs.py, speech
in speech.py.
"""

import numpy as np

from gptjax.config import Config, TextDataConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.data import pairs, speech, texts
from gptjax.data.pairs import PairData
from gptjax.data.speech import SpeechData
from gptjax.data.texts import ALL, Batch, TextData
from gptjax.data.tokenizer import Tokenizer

Data = TextData | PairData | SpeechData


def load(config: Config, tok: Tokenizer | None = None) -> Data:
    """Reads, or fetches, and tokenizes what the model of a configuration can learn from.

    With the tokenizer given, of the kind that the model wants, or one made as config.data says.
    """
    match config.model:
        case EncoderDecoderConfig():
            return pairs.load(config, tok)
        case SpeechConfig():
            return speech.load(config, tok)
        case _:
            assert isinstance(config.data, TextDataConfig)
            return texts.load(config.data, config.model.block_size, tok)


def training_batches(
    data: Data, config: Config, steps: range, capacity: int, rows: slice = ALL
) -> Batch:
    """These rows of the batches of these steps, leaves (capacity, B, ...).

    Behind the steps follow zeros, which weigh nothing.
    """
    batches = [data.batch(config, step, rows) for step in steps]
    stacked = {}
    for name, leaf in batches[0].items():
        stacked[name] = np.zeros((capacity, *leaf.shape), leaf.dtype)
        np.stack([batch[name] for batch in batches], out=stacked[name][: len(batches)])
    return stacked
