"""What a model writes during training: a text, or answers next to the references."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gptjax.config import Config
from gptjax.config_encoders import SpeechConfig
from gptjax.data.dataset import Data
from gptjax.data.pairs import PairData
from gptjax.data.speech import SpeechData
from gptjax.data.texts import TextData
from gptjax.decoding import beam_search, sampling, transcription

N_EXAMPLES = 20
SAMPLER = sampling.Sampler(temperature=0.8)


def preview(dataset: Data, model: Any, params: Any, config: Config) -> str:
    """A text that the model continues from nothing, or its answers to validation examples.

    Answers are lines of hypothesis (for pairs: source, hypothesis) and, in brackets, reference.
    """
    match dataset:
        case TextData():
            prompt_11 = np.array([[dataset.tokenizer.start]])
            n_tokens = config.train.sample_tokens
            ids_1T = sampling.complete(
                model, params, prompt_11, n_tokens, sampler=SAMPLER, seed=config.seed
            )
            return dataset.tokenizer.decode(ids_1T[0])
        case PairData():
            sources = list(dataset.val)[:N_EXAMPLES]
            hypotheses = beam_search.transduce(model, params, dataset.tokenizer, sources)
            return "\n".join(
                f"{source}\t{best.text}\t({' | '.join(dataset.val[source])})"
                for source, (best, *_) in zip(sources, hypotheses, strict=True)
            )
        case SpeechData():
            assert isinstance(config.model, SpeechConfig)
            examples = dataset.val_examples(N_EXAMPLES, config.model)
            clips = [example.samples_N for example in examples]
            tok = dataset.tokenizer
            transcripts = transcription.transcribe(model, params, tok, clips, times=False)
            return "\n".join(
                f"{transcript.text}\t({example.text})"
                for transcript, example in zip(transcripts, examples, strict=True)
            )


def programs(
    dataset: Data, model: Any, params: Any, config: Config
) -> list[Callable[[], jax.stages.Lowered]]:
    """The programs of the preview of a text, to compile ahead. params: shapes, on one device."""
    if not isinstance(dataset, TextData) or not config.train.sample_tokens:
        return []
    return sampling.programs(model, params, config.train.sample_tokens, SAMPLER)
