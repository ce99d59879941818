"""Speech to text without training: padding, windows, merging, times of words, error rates."""

import dataclasses
import functools
import itertools
from typing import Any

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_error_rates import distance

from gptjax import models, speech_recognizer
from gptjax.config_encoders import SpeechConfig
from gptjax.data import audio, speech
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.recordings import Example
from gptjax.data.tokenizer import SpeechTokenizer, WordTokenizer
from gptjax.decoding import beam_search, error_rates, transcription, word_alignment

pytest.importorskip("jiwer", reason="an extra: pip install -e '.[evaluate]'")
PLAIN = SpeechConfig(
    **dataclasses.asdict(conftest.TINY) | {"block_size": 8, "n_layer": 1},
    n_encoder_layer=1,
    n_mels=20,
    source_block_size=80,
)
MODERN = dataclasses.replace(
    PLAIN,
    **dataclasses.asdict(conftest.MODERN) | {"block_size": 8, "n_layer": 1, "logit_softcap": 0.0},
)
TOK = SpeechTokenizer(WordTokenizer.train("zero one two three four five"))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


@functools.cache
def make(config: SpeechConfig) -> tuple[models.SpeechRecognizer, Any]:
    """A model none of whose parameters is zero. The plain one hears something else in each clip."""
    model = models.build(config, TOK)
    assert isinstance(model, models.SpeechRecognizer)
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: models.init(model, seed=2))
    return model, jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(p.dtype), shapes)


# --- the model


@pytest.mark.slow
def test_the_stem_is_two_convolutions_of_which_the_second_halves() -> None:
    torch = pytest.importorskip("torch", reason="an extra: pip install -e '.[torch]'")
    _, params = make(PLAIN)
    mel_BTM = np.random.default_rng(0).standard_normal((2, 23, 20)).astype(np.float32)
    encoder = speech_recognizer.SpeechEncoder(PLAIN)
    apply = jax.jit(functools.partial(encoder.apply, capture_intermediates=True))
    _, found = apply({"params": params["encoder"]}, mel_BTM, None)
    ours = jax.nn.gelu(found["intermediates"]["conv_2"]["__call__"][0], approximate=False)
    x = torch.from_numpy(mel_BTM.transpose(0, 2, 1))
    for name, stride in (("conv_1", 1), ("conv_2", 2)):
        kernel, bias = (np.asarray(params["encoder"][name][k]) for k in ("kernel", "bias"))
        n_in = len(kernel) // 3
        weight = torch.from_numpy(kernel.reshape(3, n_in, -1).transpose(2, 1, 0).copy())
        x = torch.nn.functional.conv1d(x, weight, torch.from_numpy(bias.copy()), stride, 1)
        x = torch.nn.functional.gelu(x)
    assert x.shape == (2, 16, 12)
    np.testing.assert_allclose(ours, x.numpy().transpose(0, 2, 1), atol=1e-5)


def test_sinusoids_are_whispers() -> None:
    made = np.asarray(speech_recognizer.sinusoids(7, 6))
    angles = np.arange(7)[:, None] / 10_000 ** (np.arange(3) / 2)
    np.testing.assert_allclose(made, np.hstack([np.sin(angles), np.cos(angles)]), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [PLAIN, MODERN], ids=["plain", "modern"])
def test_padding_changes_nothing(config: SpeechConfig) -> None:
    """Next to a longer clip, a clip has the same features, logits, loss and gradients as alone."""
    model, params = make(config)
    short = Example(noise(0.37), "one two", "")
    long = Example(noise(1.5, seed=1), "three four five one", "")
    alone = speech.make_batch([short], config, TOK)
    beside = speech.make_batch([short, long], config, TOK)
    beside["loss_weights"][1] = 0
    n_frames = int(alone["source_mask"].sum())
    assert alone["source"].shape[1] < beside["source"].shape[1]
    np.testing.assert_allclose(
        alone["source"][0, :n_frames], beside["source"][0, :n_frames], atol=1e-5
    )

    def loss(params: Any, batch: dict[str, np.ndarray]) -> Any:
        logits_BTV, _ = model.apply(
            {"params": params},
            batch["tokens"],
            source=batch["source"],
            source_mask=batch["source_mask"],
        )
        log_p = jax.nn.log_softmax(jnp.asarray(logits_BTV))
        chosen = jnp.take_along_axis(log_p, batch["targets"][..., None], axis=-1)[..., 0]
        return -(chosen * batch["loss_weights"]).sum() / batch["loss_weights"].sum(), logits_BTV[0]

    loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    found = [loss_and_gradient(params, batch) for batch in (alone, beside)]
    ((a, logits_a), of_a), ((b, logits_b), of_b) = jax.device_get(found)
    n = min(len(logits_a), len(logits_b))
    np.testing.assert_allclose(logits_a[:n], logits_b[:n], atol=1e-5)
    np.testing.assert_allclose(a, b, atol=1e-5)
    for left, right in zip(jax.tree.leaves(of_a), jax.tree.leaves(of_b), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.slow
def test_cached_decoding_equals_decoding_without_a_cache() -> None:
    model, params = make(PLAIN)
    mel_BTM, mask_BT = audio.features([noise(0.2), noise(0.8, 1)], PLAIN)
    beams = beam_search.beam_search(model, params, mel_BTM, mask_BT, TOK.end)
    apply = jax.jit(model.apply)
    ids_BT = np.full((2, PLAIN.block_size + 1), TOK.end)
    for t in range(PLAIN.block_size):
        # All of it, so that it compiles once; a causal decoder ignores what is still to come.
        inputs = {"source": mel_BTM, "source_mask": mask_BT}
        logits_BTV, _ = apply({"params": params}, ids_BT[:, :-1], **inputs)
        ids_BT[:, t + 1] = np.asarray(logits_BTV)[:, t].argmax(-1)
    assert len(np.unique(ids_BT)) > 2
    for row, ids in enumerate(ids_BT[:, 1:].tolist()):
        ids = ids[: [*ids, TOK.end].index(TOK.end) + 1]
        length = int(beams.length_BN[row, 0])
        np.testing.assert_array_equal(beams.tokens_BNT[row, 0, :length], ids)


def test_the_encoder_refuses_more_positions_than_it_has() -> None:
    model, params = make(PLAIN)
    apply = functools.partial(jax.eval_shape, model.apply, {"params": params})
    with pytest.raises(ValueError, match="81 positions do not fit 80"):
        apply(np.zeros((1, 1), int), source=np.zeros((1, 162, 20)))


# --- transcribing


def test_features_do_not_depend_on_volume() -> None:
    clips = [noise(0.5), 0.01 * noise(0.5)]
    loud_TM, quiet_TM = audio.features(clips, PLAIN)[0]
    np.testing.assert_allclose(quiet_TM, loud_TM, atol=1e-4)
    assert loud_TM.max() == 1
    as_whisper = dataclasses.replace(PLAIN, pad_source=True)
    loud_TM, quiet_TM = audio.features(clips, as_whisper)[0]
    assert np.abs(loud_TM - quiet_TM).max() > 0.5


def test_windows_cover_the_clip_and_overlap() -> None:
    longest = 2 * PLAIN.source_block_size * HOP
    for n in (1, longest, longest + 1, 3 * longest + 77, 10 * longest):
        found = transcription.windows(noise(n / SAMPLE_RATE), longest)
        assert found[0][0] == 0
        assert found[-1][1] == n
        assert all(0 < end - first <= longest for first, end in found)
        for (_, end), (first, _) in itertools.pairwise(found):
            assert end >= first
    assert transcription.windows(noise(longest / SAMPLE_RATE), longest) == [(0, longest)]


def test_windows_begin_and_end_between_words() -> None:
    word, gap = noise(0.15), np.zeros(SAMPLE_RATE * 3 // 20, np.float32)
    samples_N = np.concatenate([word, gap] * 100)
    found = transcription.windows(samples_N, 4 * SAMPLE_RATE)
    assert len(found) > 9
    for cut in [first for first, _ in found[1:]] + [end for _, end in found[:-1]]:
        assert not samples_N[cut - 400 : cut + 400].any()


def test_windows_leave_out_long_pauses_at_the_ends() -> None:
    silence = np.zeros(3 * SAMPLE_RATE, np.float32)
    samples_N = np.concatenate([silence, noise(0.5), silence])
    ((first, end),) = transcription.windows(samples_N, 2 * SAMPLE_RATE)
    assert 2.7 <= first / SAMPLE_RATE <= 3.0
    assert 3.5 <= end / SAMPLE_RATE <= 3.8


def test_a_window_has_no_more_words_than_the_decoder_has_room_for() -> None:
    few = dataclasses.replace(PLAIN, source_block_size=320)  # 6.4 s, 7 words and the end
    assert transcription.longest_window(few, TOK) < 4 * SAMPLE_RATE
    many = dataclasses.replace(few, block_size=448)
    assert transcription.longest_window(many, TOK) == 320 * 2 * HOP


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([1, 2, 2, 2, 2, 2], [1, 2]),
        ([1, 2, 3, 2, 3, 2, 3, 2, 3], [1, 2, 3]),
        ([1, 2, 2, 2], [1, 2, 2, 2]),  # three times is emphasis
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([], []),
    ],
)
def test_repetitions_at_the_end_are_cut(ids: list[int], kept: list[int]) -> None:
    assert transcription.cut_repetitions(np.array(ids, int)).tolist() == kept


@pytest.mark.slow
def test_endless_repetition_is_cut_off_and_reported() -> None:
    model, params = make(PLAIN)
    params = jax.tree.map(np.zeros_like, params)
    (two,) = TOK.target.encode("two")
    params["decoder"]["head"]["bias"][two] = 5.0
    (transcript,) = transcription.transcribe(model, params, TOK, [noise(0.2)])
    assert transcript.looped
    assert transcript.text == "two"


@pytest.mark.slow
def test_silence_has_an_empty_transcript() -> None:
    model, params = make(PLAIN)
    silence = np.zeros(8000, np.float32)
    found = transcription.transcribe(model, params, TOK, [silence, noise(0.2)])
    assert found[0].text == ""
    assert found[0].words == ()
    assert found[0].seconds == 0.5
    assert transcription.transcribe(model, params, TOK, []) == []


@pytest.mark.slow
def test_a_transcript_does_not_depend_on_the_other_clips() -> None:
    model, params = make(PLAIN)
    clips = [noise(0.2 + 0.6 * i, seed=i) for i in range(3)]  # of three widths
    batch = transcription.transcribe(model, params, TOK, clips)
    reversed_batch = transcription.transcribe(model, params, TOK, clips[::-1])[::-1]
    texts = [transcript.text for transcript in batch]
    assert texts == [transcript.text for transcript in reversed_batch]
    assert len(set(texts)) == 3
    # Alone it is also padded less.
    (alone,) = transcription.transcribe(model, params, TOK, [clips[0]], times=False)
    assert alone.text == texts[0]
    for transcript, clip in zip(batch, clips, strict=True):
        times = [t for word in transcript.words for t in (word.start, word.end)]
        assert times == sorted(times)
        assert all(0 <= t <= len(clip) / SAMPLE_RATE + 0.02 for t in times)


def test_a_monotonic_path_takes_every_token_in_order() -> None:
    weights_TS = np.array([[9, 1, 1, 0, 0, 0], [0, 8, 2, 1, 0, 0], [0, 0, 1, 8, 1, 9.0]])
    assert word_alignment.monotonic_path(weights_TS).tolist() == [0, 1, 1, 2, 2, 2]


def test_the_heads_that_follow_the_sound_are_chosen() -> None:
    follows = np.kron(np.eye(4), np.ones((1, 5))) + 0.01
    diffuse = np.ones((4, 20))
    backwards = follows[::-1]
    weights_HTS = np.stack([diffuse, follows, backwards, follows])
    np.testing.assert_allclose(word_alignment.mean_of_alignment_heads(weights_HTS), follows)


# --- error rates


def test_error_rates_are_those_of_levenshtein() -> None:
    rng = np.random.default_rng(3)
    words = ["one", "two", "three", "four"]
    references = [
        Example(np.zeros(0), " ".join(rng.choice(words, int(rng.integers(1, 6)))), f"s{i % 3}")
        for i in range(40)
    ]
    hypotheses = [
        one.text if rng.random() < 0.5 else " ".join(rng.choice(words, int(rng.integers(0, 6))))
        for one in references
    ]
    found = error_rates.speech_errors(references, hypotheses)
    pairs = list(zip(references, hypotheses, strict=True))
    n_wrong = np.array([distance(a.text.split(), b.split()) for a, b in pairs])
    n_words = np.array([len(one.text.split()) for one in references])
    assert found["wer"] == pytest.approx(n_wrong.sum() / n_words.sum())
    assert found["accuracy"] == pytest.approx(np.mean(n_wrong == 0))
    n_letters = sum(distance(list(a.text), list(b)) for a, b in pairs)
    assert found["cer"] == pytest.approx(n_letters / sum(len(one.text) for one in references))
    low, high = found["wer_interval"]
    # The normal approximation of the ratio's distribution.
    rest = n_wrong - found["wer"] * n_words
    half = 1.96 * rest.std() / n_words.mean() / len(references) ** 0.5
    np.testing.assert_allclose([found["wer"] - low, high - found["wer"]], half, rtol=0.25)
    for k in range(3):
        row = found["per_speaker"][f"s{k}"]
        assert row["clips"] == len(n_wrong[k::3])
        assert row["accuracy"] == pytest.approx(np.mean(n_wrong[k::3] == 0))
    rates = [w["errors"] / len(w["reference"].split()) for w in found["worst"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == (n_wrong / n_words).max()


def test_case_and_punctuation_are_no_errors() -> None:
    found = error_rates.speech_errors([Example(np.zeros(0), "Hello, world!", "")], ["hello world"])
    assert found["wer"] == found["cer"] == 0
    assert found["accuracy"] == 1
    assert found["worst"] == []
