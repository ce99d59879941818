"""Which token sounds when. It is known, because strings of words were joined by this program.

A model that is told this learns several times sooner which part of a sound belongs to which token
of the text. The head that predicts it is used in training only.
"""

from collections.abc import Sequence

import numpy as np

from gptjax.data.audio import HOP
from gptjax.data.batches import Batch
from gptjax.data.recordings import Plan
from gptjax.data.tokenizer import SpeechTokenizer


def frame_targets(
    plans: Sequence[Plan], speed_B: np.ndarray, tok: SpeechTokenizer, batch: Batch
) -> Batch:
    """`frames` (B, S) int32, the token at each position of the encoder, and `frame_weights` (B, S).

    speed_B: how fast each row is played. Pauses are tok.end. The tokens of a clip share its time
    evenly, as in the first round of training a hidden Markov model. The weights of a row add up to
    those of its text, so that both losses count alike.
    """
    weights_BS = batch["source_mask"][:, ::2].astype(np.float32)  # a position is two frames
    frames_BS = np.full(weights_BS.shape, tok.end, np.int32)
    for frames_S, plan, speed in zip(frames_BS, plans, speed_B, strict=True):
        for clip, start in zip(plan.clips, plan.starts, strict=True):
            ids = tok.target.encode(clip.text)
            samples = start + clip.n_samples * np.arange(len(ids) + 1) / len(ids)
            bounds = np.round(samples / speed / (2 * HOP)).astype(int)
            for token, first, end in zip(ids, bounds, bounds[1:], strict=False):
                frames_S[first:end] = token
    weights_BS *= (batch["loss_weights"].sum(1) / np.maximum(weights_BS.sum(1), 1))[:, None]
    return {"frames": frames_BS, "frame_weights": weights_BS}
