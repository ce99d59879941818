"""From sound to text: the model, its padding, windows, word times, error rates, the commands."""

import dataclasses
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Refused
from matplotlib.axes import Axes

from gptjax import models, speech_recognizer, train
from gptjax.commands import evaluate, sample
from gptjax.config_encoders import SpeechConfig
from gptjax.data import audio, batches, speech, strings
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.recordings import Example
from gptjax.data.tokenizer import SpeechTokenizer, WordTokenizer
from gptjax.decoding import beam_search, error_rates, transcription, word_alignment
from gptjax.runs import report

soundfile = pytest.importorskip("soundfile", reason="an extra: pip install -e '.[speech]'")
pytest.importorskip("jiwer", reason="an extra: pip install -e '.[evaluate]'")
REPO = Path(__file__).parents[1]
RECORDINGS = REPO.parent / "shared/speech/fsdd/recordings"
PLAIN = SpeechConfig(
    n_encoder_layer=2,
    n_layer=2,
    n_head=2,
    n_embd=16,
    n_mels=20,
    block_size=8,
    source_block_size=80,
    dropout=0.0,
)
MODERN = dataclasses.replace(
    PLAIN,
    position="rotary",
    norm="rmsnorm",
    activation="relu2",
    qk_norm=True,
    short_conv=3,
    bias=False,
)
BOTH = pytest.mark.parametrize("config", [PLAIN, MODERN], ids=["plain", "modern"])


def word_tokenizer() -> SpeechTokenizer:
    return SpeechTokenizer(WordTokenizer.train("zero one two three four five"))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def make(config: SpeechConfig, tok: SpeechTokenizer) -> tuple[models.SpeechRecognizer, Any]:
    """A model none of whose parameters is zero."""
    model = models.build(config, tok)
    assert isinstance(model, models.SpeechRecognizer)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32),
        models.init(model, seed=2),
    )
    return model, params


# --- the model


def test_the_stem_is_two_convolutions_of_which_the_second_halves() -> None:
    torch = pytest.importorskip("torch", reason="an extra: pip install -e '.[torch]'")
    config = dataclasses.replace(PLAIN, n_encoder_layer=1)
    _, params = make(config, word_tokenizer())
    mel_BTM = np.random.default_rng(0).standard_normal((2, 23, 20)).astype(np.float32)
    seen: list[Any] = []
    encoder = speech_recognizer.SpeechEncoder(config)
    # What enters the first block is what leaves the stem, and sinusoids.
    apply = jax.jit(partial(encoder.apply, capture_intermediates=True))
    _, found = apply({"params": params["encoder"]}, mel_BTM, None)
    stem = found["intermediates"]["conv_2"]["__call__"][0]
    seen = [jax.nn.gelu(stem, approximate=False)]
    x = torch.from_numpy(mel_BTM.transpose(0, 2, 1))
    for name, stride in (("conv_1", 1), ("conv_2", 2)):
        kernel, bias = (np.asarray(params["encoder"][name][k]) for k in ("kernel", "bias"))
        n_in = len(kernel) // 3
        weight = torch.from_numpy(kernel.reshape(3, n_in, -1).transpose(2, 1, 0).copy())
        x = torch.nn.functional.conv1d(x, weight, torch.from_numpy(bias.copy()), stride, 1)
        x = torch.nn.functional.gelu(x)
    assert x.shape == (2, 16, 12)
    np.testing.assert_allclose(seen[0], x.numpy().transpose(0, 2, 1), atol=1e-5)


def test_sinusoids_are_whispers() -> None:
    made = np.asarray(models.sinusoids(7, 6))
    for s in range(7):
        for i in range(3):
            angle = s / 10_000 ** (i / 2)
            np.testing.assert_allclose(made[s, [i, i + 3]], [np.sin(angle), np.cos(angle)], 1e-5)


@BOTH
def test_padding_changes_nothing(config: SpeechConfig) -> None:
    """A clip beside a longer one: states, logits, loss and every gradient as when alone."""
    tok = word_tokenizer()
    model, params = make(config, tok)
    short = Example(noise(0.37), "one two", "")
    long = Example(noise(1.5, seed=1), "three four five one", "")
    alone = speech.make_batch([short], config, tok)
    beside = speech.make_batch([short, long], config, tok)
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
    (a, logits_a), of_a = loss_and_gradient(params, alone)
    (b, logits_b), of_b = loss_and_gradient(params, beside)
    n = min(len(logits_a), len(logits_b))
    np.testing.assert_allclose(logits_a[:n], logits_b[:n], atol=1e-5)
    np.testing.assert_allclose(a, b, atol=1e-5)
    for left, right in zip(jax.tree.leaves(of_a), jax.tree.leaves(of_b), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


@BOTH
def test_decoding_with_a_cache_finds_what_reading_all_again_finds(config: SpeechConfig) -> None:
    tok = word_tokenizer()
    model, params = make(config, tok)
    mel_BTM, mask_BT = audio.features([noise(0.5), noise(1.2, 1)], config)
    beams = beam_search.beam_search(model, params, mel_BTM, mask_BT, tok.end)
    apply = jax.jit(model.apply)
    for row in range(2):
        ids = [tok.end]
        while len(ids) <= config.block_size:
            # Padded to one shape, so that it compiles once; a causal decoder does not see that.
            logits, _ = apply(
                {"params": params},
                np.pad([ids], ((0, 0), (0, config.block_size - len(ids)))),
                source=mel_BTM[row : row + 1],
                source_mask=mask_BT[row : row + 1],
            )
            ids.append(int(np.argmax(np.asarray(logits)[0, len(ids) - 1])))
            if ids[-1] == tok.end:
                break
        length = int(beams.length_BN[row, 0])
        np.testing.assert_array_equal(beams.tokens_BNT[row, 0, :length], ids[1:])


def test_a_sound_longer_than_the_window_is_an_error_of_the_caller() -> None:
    model, params = make(PLAIN, word_tokenizer())
    with pytest.raises(ValueError, match="81 positions do not fit 80"):
        model.apply({"params": params}, np.zeros((1, 1), int), source=np.zeros((1, 162, 20)))


# --- transcribing


def test_how_loud_a_recording_is_makes_no_difference() -> None:
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


def test_long_pauses_at_the_ends_are_no_part_of_a_window() -> None:
    silence = np.zeros(3 * SAMPLE_RATE, np.float32)
    samples_N = np.concatenate([silence, noise(0.5), silence])
    ((first, end),) = transcription.windows(samples_N, 2 * SAMPLE_RATE)
    assert 2.7 <= first / SAMPLE_RATE <= 3.0
    assert 3.5 <= end / SAMPLE_RATE <= 3.8


def test_a_window_is_as_long_as_the_decoder_has_room_for_its_words() -> None:
    tok = word_tokenizer()
    few = dataclasses.replace(PLAIN, source_block_size=320)  # 6.4 s, 7 words and the end
    assert transcription.longest_window(few, tok) < 4 * SAMPLE_RATE
    many = dataclasses.replace(few, block_size=448)
    assert transcription.longest_window(many, tok) == 320 * 2 * HOP


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
def test_a_tail_that_repeats_itself_is_cut(ids: list[int], kept: list[int]) -> None:
    assert transcription.cut_repetitions(np.array(ids, int)).tolist() == kept


def test_a_model_that_never_ends_is_cut_off_and_says_so() -> None:
    tok = word_tokenizer()
    model = models.build(PLAIN, tok)
    assert isinstance(model, models.SpeechRecognizer)
    params = jax.tree.map(np.zeros_like, jax.device_get(models.init(model, seed=0)))
    (two,) = tok.target.encode("two")
    params["decoder"]["head"]["bias"][two] = 5.0
    (heard,) = transcription.transcribe(model, params, tok, [noise(0.5)])
    assert heard.looped
    assert heard.text == "two"


def test_silence_says_nothing_and_neither_does_no_clip() -> None:
    model, params = make(PLAIN, word_tokenizer())
    silence = np.zeros(8000, np.float32)
    found = transcription.transcribe(model, params, word_tokenizer(), [silence, noise(0.3)])
    assert found[0].text == ""
    assert found[0].words == ()
    assert found[0].seconds == 0.5
    assert transcription.transcribe(model, params, word_tokenizer(), []) == []


def test_what_is_heard_does_not_depend_on_the_other_clips() -> None:
    tok = word_tokenizer()
    model, params = make(MODERN, tok)
    clips = [noise(0.2 + 0.4 * i, seed=i) for i in range(5)]
    together = transcription.transcribe(model, params, tok, clips)
    turned = transcription.transcribe(model, params, tok, clips[::-1])[::-1]
    alone = [transcription.transcribe(model, params, tok, [clip])[0] for clip in clips]
    texts = [heard.text for heard in together]
    assert texts == [heard.text for heard in turned] == [heard.text for heard in alone]
    for heard, clip in zip(together, clips, strict=True):
        times = [t for word in heard.words for t in (word.start, word.end)]
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


def distance(a: list[str], b: list[str]) -> int:
    """Levenshtein's, by the book."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_error_rates_are_those_of_levenshtein() -> None:
    rng = np.random.default_rng(3)
    words = ["one", "two", "three", "four"]
    said = [
        Example(np.zeros(0), " ".join(rng.choice(words, int(rng.integers(1, 6)))), f"s{i % 3}")
        for i in range(40)
    ]
    written = [
        one.text if rng.random() < 0.5 else " ".join(rng.choice(words, int(rng.integers(0, 6))))
        for one in said
    ]
    found = error_rates.speech_errors(said, written)
    n_wrong = [distance(a.text.split(), b.split()) for a, b in zip(said, written, strict=True)]
    n_words = sum(len(one.text.split()) for one in said)
    assert found["wer"] == pytest.approx(sum(n_wrong) / n_words)
    assert found["accuracy"] == pytest.approx(np.mean(np.array(n_wrong) == 0))
    n_letters = sum(distance(list(a.text), list(b)) for a, b in zip(said, written, strict=True))
    assert found["cer"] == pytest.approx(n_letters / sum(len(one.text) for one in said))
    low, high = found["wer_interval"]
    # The normal approximation of the ratio's distribution.
    n_mean = n_words / len(said)
    rest = np.array(n_wrong) - found["wer"] * np.array([len(s.text.split()) for s in said])
    half = 1.96 * rest.std() / n_mean / len(said) ** 0.5
    np.testing.assert_allclose([found["wer"] - low, high - found["wer"]], half, rtol=0.25)
    for k in range(3):
        row = found["per_speaker"][f"s{k}"]
        of = [i for i in range(40) if i % 3 == k]
        assert row["clips"] == len(of)
        assert row["accuracy"] == pytest.approx(np.mean([n_wrong[i] == 0 for i in of]))
    rates = [w["errors"] / len(w["reference"].split()) for w in found["worst"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == max(w / len(s.text.split()) for w, s in zip(n_wrong, said, strict=True))


def test_case_and_punctuation_are_no_errors() -> None:
    found = error_rates.speech_errors([Example(np.zeros(0), "Hello, world!", "")], ["hello world"])
    assert found["wer"] == found["cer"] == 0
    assert found["accuracy"] == 1
    assert found["worst"] == []


# --- four clips learned by heart, and every command on that run

# The window is so long that all clips are padded to one width and share every batch. When a batch
# had clips of one length alone, what a step taught the next one overwrote, and how many steps it
# took to tell "seven" from "nine" was luck.
CONFIG = """
from pathlib import Path
from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig

config = Config(
    model=SpeechConfig(n_encoder_layer=1, n_layer=1, n_head=2, n_embd=64, block_size=8,
        source_block_size=240, dropout=0.0, position="rotary", norm="rmsnorm", short_conv=3),
    data=SpeechDataConfig(path=Path({path!r}), tokenizer="word"),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
    train=TrainConfig(max_steps=60, batch_size=8, eval_interval=30, log_interval=1),
)
"""
SAID = {"0_george_0": "zero", "3_george_1": "three", "7_theo_2": "seven", "9_theo_3": "nine"}


def run_train(*arguments: object) -> None:
    train.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not RECORDINGS.is_dir():
        pytest.skip(f"no {RECORDINGS}")
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    pause = np.zeros(int(transcription.MARGIN_SECONDS * SAMPLE_RATE), np.float32)
    for name, text in SAID.items():  # as a window of a longer sound has it
        samples_N = np.concatenate([pause, audio.read(RECORDINGS / f"{name}.wav"), pause])
        soundfile.write(folder / f"paused-{name}.wav", samples_N, SAMPLE_RATE)
        rows.append({"audio": f"paused-{name}.wav", "text": text, "split": "train"})
    for split in ("train", "val", "test"):
        for name, text in SAID.items():
            copy = folder / f"{split}-{name}.wav"
            copy.write_bytes((RECORDINGS / f"{name}.wav").read_bytes())
            speaker = name.split("_")[1]
            rows.append({"audio": copy.name, "text": text, "speaker": speaker, "split": split})
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "four.py").write_text(CONFIG.format(path=str(folder / "clips.jsonl")))
    return folder / "four.py"


@pytest.fixture(scope="module")
def run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "four"
    run_train("--config", config_file, "--run-dir", folder)
    return folder


def listen(capsys: pytest.CaptureFixture[str], run: Path, *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    sample.main([str(run), "--audio", *map(str, arguments)])
    captured = capsys.readouterr()
    return captured.out, captured.err


def refuses(capsys: pytest.CaptureFixture[str], run: Path, *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        sample.main([str(run), *map(str, arguments)])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out, captured.err


def test_four_clips_are_learned_by_heart(run: Path) -> None:
    losses = [row["val_loss"] for row in report.read_metrics(run) if "val_loss" in row]
    assert losses[-1] < 0.02  # 0.002 to 0.003 with the seeds that were tried
    found = evaluate.evaluate(evaluate.Evaluate(run))
    assert found["accuracy"] == 1.0, found["worst"]
    assert found["wer"] == found["cer"] == 0.0


def test_evaluate_prints_the_keys_that_scripts_read(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"wer", "cer", "accuracy", "per_speaker", "wer_interval", "worst"} <= set(found)
    assert {name: row["clips"] for name, row in found["per_speaker"].items()} == {
        "george": 2,
        "theo": 2,
    }
    evaluate.main([str(run)])
    assert "95 % interval of WER" in capsys.readouterr().out


def test_evaluate_takes_every_clip_of_another_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for take in (0, 6, 20):  # of all three splits
        name = f"0_george_{take}.wav"
        (tmp_path / name).write_bytes((RECORDINGS / "0_george_0.wav").read_bytes())
    evaluate.main([str(run), "--json", "--data.path", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == 3
    assert found["accuracy"] == 1.0
    with pytest.raises(SystemExit):
        evaluate.main([str(run), "--data.path", str(tmp_path / "missing")])
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "rate"), [(".wav", 22_050), (".flac", 44_100), (".ogg", 48_000)]
)
def test_other_formats_rates_and_channels_say_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, rate: int
) -> None:
    soxr = pytest.importorskip("soxr", reason="an extra: pip install -e '.[speech]'")
    samples_N, original = soundfile.read(RECORDINGS / "7_theo_2.wav")
    samples_N = soxr.resample(samples_N, original, rate)
    both_NC = np.stack([samples_N, samples_N], axis=1)
    soundfile.write(tmp_path / f"a{suffix}", both_NC, rate)
    out, _ = listen(capsys, run, tmp_path / f"a{suffix}")
    assert out.splitlines()[0] == "seven"


def test_rates_that_cannot_be_and_nameless_formats_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate in (1, 2_000_000_000):
        soundfile.write(tmp_path / "a.wav", noise(0.5), rate)
        _, err = refuses(capsys, run, "--audio", tmp_path / "a.wav")
        assert f"has a rate of {rate:,} Hz" in err
    soundfile.write(tmp_path / "a.wav", noise(0.5)[:1], 96_000)
    assert "has no samples" in refuses(capsys, run, "--audio", tmp_path / "a.wav")[1]
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    assert "cannot be read as sound" in refuses(capsys, run, "--audio", tmp_path / "a.raw")[1]
    assert "- twice" in refuses(capsys, run, "--audio", "-", "-")[1]


def test_a_name_that_is_no_utf_8_is_a_name(run: Path, tmp_path: Path) -> None:
    path = bytes(tmp_path) + b"/bad\xff.wav"
    Path(os.fsdecode(path)).write_bytes((RECORDINGS / "7_theo_2.wav").read_bytes())
    line = [os.fsencode(sys.executable), b"sample.py", bytes(run), b"--audio", path]
    made = subprocess.run(line, capture_output=True, cwd=REPO)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(b"seven")


def test_words_are_where_they_are_said_behind_a_long_pause(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word_N = audio.read(RECORDINGS / "7_theo_2.wav")
    samples_N = np.concatenate([np.zeros(5 * SAMPLE_RATE, np.float32), word_N])
    soundfile.write(tmp_path / "late.wav", samples_N, SAMPLE_RATE)
    out, _ = listen(capsys, run, tmp_path / "late.wav", "--json")
    (word,) = json.loads(out)["words"]
    assert word["text"] == "seven"
    assert 4.8 <= word["start"] < word["end"] <= 5.1 + len(word_N) / SAMPLE_RATE


def test_strings_of_test_clips_are_heard(run: Path, tmp_path: Path) -> None:
    """By a model that writes one word of three to five, so mostly wrong, and not always."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["data"]["string_clips"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    found = evaluate.evaluate(evaluate.Evaluate(copy))
    assert found["strings"]["strings"] == 300
    assert found["wer"] == 0
    assert 0.1 < found["strings"]["wer"] < 1


def test_a_folder_and_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in SAID:
        (tmp_path / f"{name}.wav").write_bytes((RECORDINGS / f"{name}.wav").read_bytes())
    (tmp_path / "notes.txt").write_text("no sound")
    out, err = listen(capsys, run, tmp_path, "--json", "--beam", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert [row["text"] for row in rows] == [SAID[name] for name in sorted(SAID)]
    for row in rows:
        (word,) = row["words"]
        assert word["text"] == row["text"]
        assert 0 <= word["start"] < word["end"] <= row["seconds"] + 0.02
        assert row["step"] in (30, 60)


def test_stdin(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (RECORDINGS / "3_george_1.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    out, _ = listen(capsys, run, "-")
    assert out.splitlines()[0] == "three"


def test_a_sound_longer_than_the_window_is_heard_in_windows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pauses longer than a window, which so has one word, all that the model knows to write."""
    pause = np.zeros(4 * SAMPLE_RATE, np.float32)
    parts, places = [], []
    for name in (*SAID, *SAID):
        word_N = audio.read(RECORDINGS / f"{name}.wav")
        first = sum(map(len, parts)) / SAMPLE_RATE
        places.append((SAID[name], first, first + len(word_N) / SAMPLE_RATE))
        parts += [word_N, pause]
    samples_N = np.concatenate(parts)
    assert len(samples_N) > 5 * 240 * 2 * HOP
    soundfile.write(tmp_path / "long.wav", samples_N, SAMPLE_RATE)
    row = json.loads(listen(capsys, run, tmp_path / "long.wav", "--json")[0])
    assert row["text"] == " ".join(word["text"] for word in row["words"])
    found = [
        word["text"] == text and start - 0.15 <= (word["start"] + word["end"]) / 2 <= end + 0.15
        for text, start, end in places
        for word in row["words"]
    ]
    assert sum(found) == len(row["words"]) == len(places)


def test_silence_and_clipping(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), SAMPLE_RATE)
    out, err = listen(capsys, run, tmp_path / "silence.wav")
    assert out == "\n"
    assert "clipped" not in err
    samples_N = audio.read(RECORDINGS / "9_theo_3.wav")
    loud = np.clip(20 * samples_N / np.abs(samples_N).max(), -1, 1)
    soundfile.write(tmp_path / "loud.wav", loud, SAMPLE_RATE, subtype="FLOAT")
    _, err = listen(capsys, run, tmp_path / "loud.wav")
    assert "loud.wav is clipped" in err


def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_being_heard(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RECORDINGS / "9_theo_3.wav"
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), SAMPLE_RATE)
    for bad in ("broken.wav", "empty.wav", "missing.wav"):
        out, err = refuses(capsys, run, "--audio", tmp_path / bad)
        assert out == ""
        assert bad in err.splitlines()[-1]
        assert len(err.splitlines()) == 1
        out, err = refuses(capsys, run, "--audio", tmp_path / bad, good)
        assert "nine" in out
        assert bad in err


def test_options_of_the_other_models_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RECORDINGS / "9_theo_3.wav"
    for extra in (("--prompt", "x"), ("--source", "x"), ("--interactive",)):
        _, err = refuses(capsys, run, "--audio", good, *extra)
        assert f"{extra[0]} is not for" in err
    _, err = refuses(capsys, run)
    assert "--audio is missing" in err
    _, err = refuses(capsys, run, "--audio", tmp_path)
    assert "has no audio files" in err
    _, err = refuses(capsys, run, "--audio", good, "--beam", "0")
    assert "--beam is 0" in err


def test_attention_draws_one_sound(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RECORDINGS / "9_theo_3.wav"
    picture = tmp_path / "a.png"
    drawn = []
    imshow = Axes.imshow
    with mock.patch.object(Axes, "imshow", lambda *a, **k: drawn.append(a[1]) or imshow(*a, **k)):
        listen(capsys, run, good, "--attention", picture)
    mel_MT, weights_TS = drawn
    mel_TM = np.asarray(audio.log_mel(audio.read(good)[None])[0])
    np.testing.assert_allclose(mel_MT.T, mel_TM - mel_TM.max() + 1, atol=1e-2)
    assert len(weights_TS) == 2  # the word and the end
    assert np.all(weights_TS.sum(1) > 0.5)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5000
    _, err = refuses(capsys, run, "--audio", good, good, "--attention", picture)
    assert "draws one recording, not 2" in err
    _, err = refuses(capsys, run, "--audio", good, "--attention", tmp_path / "a.gif")
    assert "must end in .png" in err


def test_a_run_that_is_stopped_ends_as_if_it_had_not_been(
    config_file: Path, tmp_path: Path
) -> None:
    """Speed, noise and masks on: the batches of a step are the same, before and after."""
    varied = ["--data.speed-change", "0.1", "--data.noise", "0.5", "--data.spec-masks", "1"]
    varied += ["--train.eval-interval", "6", "--train.sample-tokens", "0"]
    losses = []
    for name, stops in (("whole", [12]), ("parts", [6, 12])):
        for n_steps in stops:
            # Another process would know nothing of what this one keeps in memory.
            batches._epoch.cache_clear()
            strings.read_word.cache_clear()
            line = ["--config", config_file, "--run-dir", tmp_path / name, *varied]
            run_train(*line, "--train.max-steps", n_steps)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(row) for row in rows]
        losses.append([row["train_loss"] for row in found if "train_loss" in row])
    assert len(losses[0]) == 12
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "name", "says"),
    [
        ("configs/digits_cpu.py", "tinyshakespeare", "invalid choice 'tinyshakespeare'"),
        ("configs/gpt_cpu.py", "fsdd", "Unrecognized options: --data.name"),
        ("configs/g2p_cpu.py", "fsdd", "invalid choice 'fsdd'"),
        ("configs/librispeech.py", "librispeech", "name that with --data.path"),
        ("configs/digits_cpu.py", "fsdd --data.path /nowhere", "/nowhere does not exist"),
        ("configs/digits_cpu.py", "fsdd --data.noise 2", "--data.noise is 2.0"),
        ("configs/digits_cpu.py", "fsdd --data.string-clips 0", "--data.string-clips is 0"),
    ],
)
def test_data_that_the_model_cannot_learn_from_is_refused_in_one_line(
    tmp_path: Path, refused: Refused, config: str, name: str, says: str
) -> None:
    line = ["--config", REPO / config, "--run-dir", tmp_path / "run", "--data.name", *name.split()]
    assert says in refused(train.main, *line)
    assert not (tmp_path / "run").exists()


def test_librispeech_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """configs/librispeech.py, smaller: trains, is measured, hears."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no {RECORDINGS}")
    words = ("ZERO", "ONE", "TWO", "THREE")
    for subset, speaker, takes in (
        ("train-clean-100", "george", range(8, 14)),
        ("dev-clean", "theo", range(3)),
        ("test-clean", "lucas", range(3)),
    ):
        chapter = tmp_path / "LibriSpeech" / subset / speaker / "1"
        chapter.mkdir(parents=True)
        lines = []
        for digit, word in enumerate(words):
            for take in takes:
                name = f"{speaker}-1-{digit}{take:03d}"
                samples_N = audio.read(RECORDINGS / f"{digit}_{speaker}_{take}.wav")
                soundfile.write(chapter / f"{name}.flac", samples_N, SAMPLE_RATE)
                lines.append(f"{name} {word} {word}")
        (chapter / f"{speaker}-1.trans.txt").write_text("\n".join(lines) + "\n")
    folder, run = tmp_path / "LibriSpeech", tmp_path / "run"
    small = "--model.n-layer 1 --model.n-encoder-layer 1 --model.n-embd 32 --model.n-head 2"
    small += " --data.vocab-size 270 --model.source-block-size 100 --train.max-steps 4"
    small += " --train.batch-size 4 --train.eval-interval 4"
    arguments = ["--config", REPO / "configs/librispeech.py", "--data.path", folder]
    run_train(*arguments, "--run-dir", run, *small.split())
    found = evaluate.evaluate(evaluate.Evaluate(run))
    assert found["clips"] == 12
    assert set(found["per_speaker"]) == {"lucas"}
    clip = next(folder.rglob("*.flac"))
    heard, _ = listen(capsys, run, clip, "--json")
    assert json.loads(heard)["audio"] == str(clip)
