"""Models with an encoder in a page: the browser's numbers and texts equal JAX's."""

import base64
import dataclasses
import functools
import io
import math
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import jax
import numpy as np
import pytest
from chromium import OpenPage, browser, open_page, until  # noqa: F401 - fixtures

from gptjax import models
from gptjax.commands import page as page_command
from gptjax.config import Config
from gptjax.config_encoders import DATA_OF_MODEL, EncoderDecoderConfig, SpeechConfig
from gptjax.data import audio
from gptjax.data.audio import SAMPLE_RATE
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer, SpeechTokenizer, WordTokenizer
from gptjax.decoding import beam_search, transcription
from gptjax.page.html import page as html_of
from gptjax.page.tokens import for_page
from gptjax.page.weights import pack
from gptjax.quantization.quant_array import Format, quantize_params
from gptjax.runs import checkpoints, run_directory

OPTIONS = {"plain": dataclasses.replace(conftest.TINY, n_layer=1), "modern": conftest.MODERN}
SOURCES = ["gpt", "a", "transform", "efgh"]
PAIRS = PairTokenizer(CharTokenizer.train("abcdefghijmnoprst"), WordTokenizer.train("P Q R S T U"))
WORDS = SpeechTokenizer(WordTokenizer.train("zero one two three four five"))


def config_of(name: str) -> Any:
    kind, options = name.split("-")
    fields: dict[str, Any] = dataclasses.asdict(OPTIONS[options]) | {"block_size": 12}
    if kind == "pairs":
        n_encoder_layer = 2 if options == "modern" else 1
        return EncoderDecoderConfig(**fields, n_encoder_layer=n_encoder_layer, source_block_size=10)
    fields |= {"n_mels": 20, "pad_source": options == "modern"}
    return SpeechConfig(**fields, n_encoder_layer=1, source_block_size=80)


@functools.cache
def made(name: str) -> tuple[Any, Any]:
    """A model none of whose parameters is zero."""
    config, tok = config_of(name), tokenizer_of(name)
    model, rng = models.build(config, tok), np.random.default_rng(1)

    def draw(path: Any, p: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = float(path[-1].key == "scale")
        return rng.normal(mean, 0.4, p.shape).astype(np.float32)

    shapes = models.shapes(model)
    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def tokenizer_of(name: str) -> PairTokenizer | SpeechTokenizer:
    return PAIRS if name.startswith("pairs") else WORDS


def speech(seconds: float, seed: int) -> np.ndarray:
    """Noise that swells and fades three times a second, after half a second of silence."""
    rng = np.random.default_rng(seed)
    n = int(seconds * SAMPLE_RATE)
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 3 * np.arange(n) / SAMPLE_RATE)
    tone = np.sin(np.arange(n) * 0.05 * (1 + seed))
    sound = 0.2 * swell * (tone + 0.3 * rng.standard_normal(n))
    return np.concatenate([np.zeros(SAMPLE_RATE // 2), sound]).astype(np.float32)


def as_clip(samples_N: np.ndarray) -> tuple[dict[str, str], np.ndarray]:
    """A clip as a page has it, and its samples after rounding."""
    integers = np.round(samples_N * 32767).astype("<i2")
    clip = {"text": "one two", "samples": base64.b64encode(integers.tobytes()).decode()}
    return clip, integers.astype(np.float32) / np.float32(32767)


CLIP, SAMPLES = as_clip(speech(0.9, 0))


@pytest.fixture
def opened(open_page: OpenPage, tmp_path: Path) -> Callable[..., Any]:  # noqa: F811
    """Calls with a name and examples return (page, model, params)."""

    def open_model(name: str, **examples: Any) -> tuple[Any, Any, Any]:
        config, (model, params) = config_of(name), made(name)
        kind = type(config).__name__
        contents = {
            **{"name": name, "kind": kind, "hidden_width": config.hidden_width, "step": 1},
            "config": {"type": kind} | dataclasses.asdict(config),
            "tokenizer": for_page(tokenizer_of(name)),
            "parameters": models.count(params),
            "weights": {"format": "float32", "loss": {}, **pack(params, "float32")[0]},
            **{"checkpoints": [], "metrics": [], "samples": {}},
            **examples,
        }
        path = tmp_path / f"{name}.html"
        path.write_text(html_of(contents), "utf-8")
        page = open_page(path)
        page.emulate_media(reduced_motion="reduce")
        return page, model, params

    return open_model


def wait(page: Any, condition: str) -> None:
    until(lambda: page.evaluate(condition))


COMPUTE = """([source, tokens]) => {
  const { run: { config, params }, models } = globalThis.gptjax;
  const x = config.type === "SpeechConfig"
    ? models.speechEncoder(config, params, models.features(config, Float32Array.from(source)))
    : models.encoder(config, params, source);
  const given = { decoder: true, source: x };
  const logits = models.gpt(config, params.decoder, tokens, given);
  const weights = models.crossWeights(config, params.decoder, null, x, [tokens[0]],
    [...tokens.slice(1), 0]);
  return { logits: [...logits.data], weights: weights.map((w) => [...w.data]) };
}"""


def check_numbers(page: Any, model: Any, params: Any, seen: Any, sent: Any, mask: Any) -> None:
    """Logits and cross-attention of a target. seen: what JAX reads; sent: what the page gets."""
    tokens_1T = np.array([[6, 1, 3, 0, 5, 2, 2]], np.int32)

    @jax.jit
    def compute(params: Any) -> Any:
        given = {"source": seen, "source_mask": mask}
        (logits, _), sown = model.apply(
            {"params": params}, tokens_1T, **given, mutable="intermediates"
        )
        decoder = sown["intermediates"]["decoder"]
        layers = [decoder[f"block_{i}"]["cross_attention"] for i in range(model.config.n_layer)]
        return logits, [layer["weights"][0] for layer in layers]

    logits_1TV, weights_L1HTS = compute(params)
    stride = 2 if isinstance(model.config, SpeechConfig) else 1
    n_source = math.ceil(mask.sum() / stride)
    expected_LHTS = np.stack(weights_L1HTS)[:, 0, :, :, :n_source]
    found = page.evaluate(COMPUTE, [sent.tolist(), tokens_1T[0].tolist()])
    np.testing.assert_allclose(found["logits"], np.ravel(logits_1TV), atol=1e-4)
    np.testing.assert_allclose(np.ravel(found["weights"]), expected_LHTS.ravel(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_a_page_of_pairs_computes_and_writes_what_jax_does(
    opened: Callable[..., Any], options: str
) -> None:
    page, model, params = opened(f"pairs-{options}", sources=SOURCES)
    ids = PAIRS.source.encode("transform")
    check_numbers(page, model, params, ids[None], ids, np.ones((1, len(ids)), bool))

    found = beam_search.transduce(model, params, PAIRS, SOURCES)
    for source, (best,) in zip(SOURCES, found, strict=True):
        page.fill("input.source", source)
        wait(page, "!!document.querySelector('.beside .panel .bars')")
        written = page.locator(".chips b").all_inner_texts()
        assert " ".join(word for word in written if word != "end") == best.text
        assert ("end" in written) == (len(best.ids) < model.config.block_size)

    # What a page cannot read is said; capital letters are folded.
    page.fill("input.source", "GPT7")
    wait(page, "!!document.querySelector('.beside .panel .bars')")
    assert page.locator(".chips b").all_inner_texts() == [*found[0][0].text.split(), "end"][:12]
    note = page.locator(".warning").inner_text()
    assert "small ones" in note
    assert "never saw “7”" in note

    # Another token is taken, and the target goes on from there.
    config = model.config
    page.locator(".chips button").first.focus()
    other = page.locator(".beside .bars button").nth(1)
    name = other.inner_text()
    other.click()
    wait(page, "!!document.querySelector('.beside .panel .bars')")
    assert page.locator(".chips b").first.inner_text() == name
    assert page.evaluate("document.activeElement.matches('.chips button:first-child')")
    product = page.locator(".equation", has_text="p(target | source)").inner_text()
    assert "0.00 " not in product
    assert f"{config.n_encoder_layer} encoder layers" in page.inner_text("#facts")
    assert page.locator(".grid button").count() == 1 + model.config.n_layer * model.config.n_head


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_a_page_of_speech_hears_what_jax_does(
    opened: Callable[..., Any], options: str, tmp_path: Path
) -> None:
    page, model, params = opened(f"speech-{options}", clips=[CLIP])
    mel_1TM, mask_1T = audio.features([SAMPLES], model.config)
    check_numbers(page, model, params, mel_1TM, SAMPLES, mask_1T)

    wait(page, "!!document.querySelector('.heard').textContent")
    clips = [SAMPLES, speech(0.35, 1), np.zeros(9000, np.float32)]
    transcripts = transcription.transcribe(model, params, WORDS, clips)
    assert page.locator(".heard").inner_text() == transcripts[0].text
    hear = "(x) => { const { run, models } = gptjax;"
    hear += " return models.transcribe(run, Float32Array.from(x)); }"
    for samples_N, expected in zip(clips, transcripts, strict=True):
        found = page.evaluate(hear, samples_N.tolist())
        assert found["text"] == expected.text
        assert [word["text"] for word in found["words"]] == [word.text for word in expected.words]
        times = [[word["start"], word["end"]] for word in found["words"]]
        assert np.allclose(times, [[w.start, w.end] for w in expected.words], atol=1e-6)

    # Files: no sound, and a sound longer than the window.
    (tmp_path / "no.wav").write_text("no sound")
    page.set_input_files("input[type=file]", str(tmp_path / "no.wav"))
    wait(page, "document.querySelector('.warning').textContent.includes('cannot be read')")
    (tmp_path / "long.wav").write_bytes(as_wav(speech(3.0, 0)))
    page.set_input_files("input[type=file]", str(tmp_path / "long.wav"))
    wait(page, "document.querySelector('.warning').textContent.includes('1.6 seconds at a time')")


DROP = """([name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(bytes)], name));
  const given = { dataTransfer: data, bubbles: true, cancelable: true };
  const over = new DragEvent("dragover", given), drop = new DragEvent("drop", given);
  for (const event of [over, drop]) document.querySelector("#view-speech").dispatchEvent(event);
  return [over.defaultPrevented, drop.defaultPrevented];
}"""


def as_wav(samples_N: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(np.round(samples_N * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def test_a_file_that_is_dropped_on_the_page_is_heard(opened: Callable[..., Any]) -> None:
    page, *_ = opened("speech-plain")
    wait(page, "document.querySelector('.warning').textContent.includes('drop one here')")
    # The browser does not leave the page for the file.
    assert page.evaluate(DROP, ["voice.wav", list(as_wav(SAMPLES))]) == [True, True]
    wait(page, "!!document.querySelector('.heard').textContent")
    heard = "gptjax.models.transcribe(gptjax.run, Float32Array.from(x)).text || 'no words'"
    expected = page.evaluate(f"(x) => {heard}", SAMPLES.tolist())
    assert page.locator(".heard").inner_text() == expected
    assert page.locator(".warning").inner_text() == ""
    assert page.locator(".timeline").count() == 1

    page.evaluate(DROP, ["note.wav", list(b"no sound")])
    wait(page, "!!document.querySelector('.warning').textContent")
    said = page.locator(".warning").inner_text()
    assert said == "note.wav cannot be read as sound: choose a WAV, FLAC, OGG or MP3 file."
    # The words of the sound before do not stand under this message.
    assert page.locator(".heard").inner_text() == ""
    assert page.locator("canvas, .timeline").count() == 0


@pytest.mark.parametrize(
    ("name", "examples"),
    [("pairs-plain", {"sources": SOURCES}), ("speech-plain", {"clips": [CLIP]})],
)
def test_thumbnails_follow_the_colours_of_the_system(
    opened: Callable[..., Any], name: str, examples: dict[str, Any]
) -> None:
    """The same pictures, so that what was chosen stays chosen."""
    page, *_ = opened(name, **examples)
    wait(page, "!!document.querySelector('.grid canvas')")
    page.click(".grid button >> nth=2")
    colours = """[...document.querySelectorAll("canvas")].map((canvas) => {
        const { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        const sums = [0, 0, 0];
        data.forEach((x, i) => { if (i % 4 < 3) sums[i % 4] += x; });
        return sums;
    })"""
    page.emulate_media(color_scheme="light")
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    until(lambda: page.evaluate(colours) != light)
    dark = page.evaluate(colours)
    assert len(dark) == len(light)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert page.get_attribute(".grid button >> nth=2", "aria-pressed") == "true"


def test_pages_go_without_examples(opened: Callable[..., Any]) -> None:
    """The data is elsewhere: one types a word, or chooses a file."""
    page, *_ = opened("pairs-plain")
    assert "Type" in page.locator(".warning").inner_text()
    page, *_ = opened("speech-plain")
    wait(page, "document.querySelector('.warning').textContent.includes('Choose a sound file')")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "speech"])
def test_a_run_whose_data_is_elsewhere(
    kind: str,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    config, tok = config_of(f"{kind}-plain"), tokenizer_of(kind)
    form, params = Format(bits=8), made(f"{kind}-plain")[1]
    if kind == "speech":  # one that is quantized, too
        params = jax.jit(lambda params: quantize_params(params, form))(params)
    origin = {"source": "none", "sha256": "", "imported": True}
    run_config = Config(config, DATA_OF_MODEL[type(config)](path=tmp_path / "gone"))
    with run_directory.new_run(tmp_path / "run") as part:
        files = {"format.json": dataclasses.asdict(form)} if kind == "speech" else {}
        checkpoints.save_finished(part, run_config, tok, params, origin, files)
    page_command.main([str(tmp_path / "run"), "--out", str(tmp_path / "a.html")])
    page = open_page(tmp_path / "a.html", width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert "was not measured" in page.inner_text("footer")
    assert ("had rounded them to 8 bits" in page.inner_text("footer")) == (kind == "speech")
