"""What is exported computes the same elsewhere: in transformers, in a process without gptjax."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import MODERN, Refused
from flax.traverse_util import flatten_dict
from hugging_face import EXTRA, apply, run_import, save_run, torch, transformers
from hugging_face import load as load_run

from gptjax import models
from gptjax.commands import export
from gptjax.config import BigramConfig, GPTConfig, ModelConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.data import tokenizer
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer, SpeechTokenizer, Tokenizer
from gptjax.decoding import sampling
from gptjax.errors import UserError
from gptjax.interop import huggingface, stablehlo
from gptjax.kernels import choice
from gptjax.quantization.quant_array import Format, dequantize_params, quantize_params
from gptjax.runs import run_directory

tiktoken = pytest.importorskip("tiktoken", reason=EXTRA)
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason=EXTRA)

TEXT = "First:\n\n  Speak, naïve friend.\tÜber 12 €? \U0001f600\r\nAll's [UNK] well.  \n" * 3
CHAR = CharTokenizer("\n abcdefghijklmnopqr")
SEED = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=24)
GPT2_LIKE = dataclasses.replace(
    SEED, activation="gelu_tanh", attention_bias=True, tie_embeddings=True
)


def make_run(folder: Path, config: ModelConfig, tok: Tokenizer, form: Format | None = None) -> Path:
    """A run whose parameters are all random, norms and biases too, and greedy choices clear."""
    model = models.build(config, tok)
    rng = np.random.default_rng(5)

    def noise(path: Any, leaf: Any) -> np.ndarray:
        scale = 0.05 if leaf.ndim == 1 else 0.3
        noise = rng.normal(0, scale, leaf.shape).astype(np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    params = jax.tree_util.tree_map_with_path(noise, models.shapes(model))
    files = {}
    if form:
        params = jax.jit(quantize_params, static_argnums=1)(params, form)
        files = {"format.json": vars(form)}
    return save_run(folder, config, tok, params, files)


def run_export(run: Path, to: str, out: Path) -> Path:
    export.main([str(run), "--to", to, "--out", str(out)])
    return out


def load(run: Path) -> tuple[Any, Any, Any]:
    """(model, parameters, tokenizer) of a run, the parameters in float32."""
    model, params, tok = load_run(run)
    return model, jax.jit(dequantize_params)(params), tok


def some_tokens(vocab_size: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, vocab_size, shape).astype(np.int32)


def logits_of(model: Any, params: Any, *inputs: np.ndarray) -> np.ndarray:
    source = dict(zip(("source", "source_mask"), inputs[1:], strict=False))
    return np.asarray(apply(model, {"params": params}, inputs[0], **source)[0])


def load_hf(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) by transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package about itself
        model, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def assert_same_logits(theirs: Any, model: Any, params: Any) -> None:
    tokens_BT = some_tokens(theirs.config.vocab_size, (3, 24))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens_BT).long()).logits.numpy()
    ours = logits_of(model, params, tokens_BT)
    assert np.abs(ours).max() > 1
    difference = np.abs(ours - expected).max()
    print(f"largest difference of logits {difference:.2g}")
    assert difference <= 1e-5


# --- Hugging Face


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        GPT2_LIKE,
        SEED,
        dataclasses.replace(SEED, n_layer=1, n_head=4, activation="gelu", bias=False, dropout=0),
        dataclasses.replace(
            SEED, n_layer=1, activation="relu2", tie_embeddings=True, zero_init=True
        ),
    ],
    ids=["gpt2", "seed", "untied without biases", "relu2"],
)
def test_transformers_computes_the_same_logits_and_greedy_text(
    config: GPTConfig, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", config, CHAR)
    theirs, their_tok = load_hf(run_export(run, "hf", tmp_path / "hf"))
    model, params, tok = load(run)
    assert_same_logits(theirs, model, params)
    if config not in (GPT2_LIKE, SEED):
        return
    prompt = "bad cab\n ran"
    ids = tok.encode(prompt)
    greedy = sampling.Sampler(temperature=0)
    written = sampling.complete(model, params, ids[None], 12, sampler=greedy)[0]
    inputs = their_tok(prompt, return_tensors="pt")
    made = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    assert their_tok.decode(made) == prompt + tok.decode(written)
    # Without a prompt both begin with the same token.
    made = theirs.generate(max_new_tokens=8, do_sample=False)[0]
    written = sampling.complete(model, params, np.array([[tok.start]]), 8, sampler=greedy)[0]
    assert made.tolist() == [tok.start, *written.tolist()]


def test_every_tensor_is_put_in_its_place(tmp_path: Path) -> None:
    """A parameter that changes here changes there: none is lost, none is a copy of another."""
    run = make_run(tmp_path / "run", GPT2_LIKE, CHAR)
    params = load(run)[1]
    flat = flatten_dict(params, sep=".")
    theirs = huggingface.to_gpt2(GPT2_LIKE, params)
    sizes = sum(tensor.size for tensor in theirs.values())
    assert sizes == models.count(params)
    values = np.sort(np.concatenate([tensor.ravel() for tensor in theirs.values()]))
    assert np.array_equal(values, np.sort(np.concatenate([np.ravel(p) for p in flat.values()])))


def gpt2_table(text: str) -> Any:
    """tiktoken's own code and GPT-2's pattern, over a small table: the real one needs a network."""
    trained = json.loads(tokenizer.train("bpe", text, 300).to_dict()["model"])["model"]["vocab"]
    byte_of = {c: i for i, c in enumerate(huggingface.byte_characters())}
    tokens = [bytes(byte_of[c] for c in token) for token in sorted(trained, key=trained.get)]
    ranks = {token: i for i, token in enumerate(tokens)}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    special = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding(
        name="gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )


@pytest.mark.parametrize("kind", ["char", "word", "byte", "gpt2", "bpe"])
def test_tokenizers_encode_and_decode_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: gpt2_table(TEXT))
    tok = tokenizer.train(kind, TEXT, vocab_size=300)
    run = make_run(tmp_path / "run", GPT2_LIKE, tok)
    _, theirs = load_hf(run_export(run, "hf", tmp_path / "hf"))
    assert len(theirs) == tok.vocab_size
    for text in (TEXT, "", "\n", "  ", " well.\n", TEXT[7:90]):
        if kind == "word" and not set(text.split()) <= set(TEXT.split()):
            continue
        ids = tok.encode(text)
        assert theirs(text)["input_ids"] == ids.tolist()
        assert theirs.decode(ids.tolist()) == tok.decode(ids)
    for i in range(tok.vocab_size):
        assert theirs.decode([i]) == tok.decode([i])
    # Pieces of characters, too.
    pieces = some_tokens(tok.vocab_size, (20, 9))
    for ids in pieces:
        assert theirs.decode(ids.tolist()) == tok.decode(ids)
    if kind in ("char", "word"):
        with pytest.raises(Exception, match="Missing"):
            theirs("Ж")


def test_a_run_comes_back_from_hugging_face_bit_for_bit(tmp_path: Path) -> None:
    tok = tokenizer.train("bpe", TEXT, vocab_size=280)
    run = make_run(tmp_path / "run", GPT2_LIKE, tok)
    folder = run_export(run, "hf", tmp_path / "hf")
    run_import("gpt2", folder, tmp_path / "again")
    model, params, tok = load(run)
    model_again, params_again, tok_again = load(tmp_path / "again")
    assert model_again.config == model.config
    assert tok_again.to_dict() == tok.to_dict()
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    run_export(tmp_path / "again", "hf", tmp_path / "hf again")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "hf again" / name).read_bytes()


def test_a_run_of_characters_comes_back_to_the_same_logits_and_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SEED, CHAR)
    folder = run_export(run, "hf", tmp_path / "hf")
    run_import("gpt2", folder, tmp_path / "again")
    model, params, tok = load(run)
    model_again, params_again, tok_again = load(tmp_path / "again")
    tokens_BT = some_tokens(tok.vocab_size, (3, 24))
    ours, again = (
        logits_of(m, p, tokens_BT) for m, p in ((model, params), (model_again, params_again))
    )
    np.testing.assert_allclose(again, ours, atol=1e-5, rtol=0)
    for name in ("query", "key", "value"):
        assert not params_again["block_0"]["attention"][name]["bias"].any()
    assert tok_again.start == tok.start
    assert tok_again.vocab_size == tok.vocab_size
    text = " cab\n\nlad  o"
    assert tok_again.encode(text).tolist() == tok.encode(text).tolist()
    assert tok_again.decode(tok.encode(text)) == text
    with pytest.raises(UserError, match="text has 'Z', 'ж', but no token"):
        tok_again.encode("Zebra ж")


def test_the_heads_bias_moves_into_the_last_norm_only_where_it_can() -> None:
    rng = np.random.default_rng(0)
    norm_bias_D = rng.normal(size=8).astype(np.float32)
    kernel_DV = rng.normal(size=(8, 8)).astype(np.float32)
    bias_V = rng.normal(size=8).astype(np.float32)
    moved_D = huggingface.absorb(bias_V, kernel_DV, norm_bias_D)
    np.testing.assert_allclose((moved_D - norm_bias_D) @ kernel_DV, bias_V, atol=1e-4)
    wide_DV = rng.normal(size=(8, 9)).astype(np.float32)
    with pytest.raises(UserError, match=r"--model\.tie-embeddings or --model\.no-bias"):
        huggingface.absorb(np.ones(9, np.float32), wide_DV, norm_bias_D)
    unmoved_D = huggingface.absorb(np.zeros(9, np.float32), wide_DV, norm_bias_D)
    assert np.array_equal(unmoved_D, norm_bias_D)


# --- safetensors


PAIRS = PairTokenizer(CharTokenizer("abc"), CharTokenizer("xyz"))
SPEECH = SpeechTokenizer(CharTokenizer(" abc"))
SIZES: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 24}
SIZES |= {"n_encoder_layer": 1, "source_block_size": 12}
ENCODER_DECODER = EncoderDecoderConfig(**SIZES)
RECOGNIZER = SpeechConfig(**SIZES, n_mels=5)
EVERY_MODEL: dict[str, tuple[ModelConfig, Tokenizer]] = {
    "gpt": (MODERN, CHAR),
    "bigram": (BigramConfig(), CHAR),
    "pairs": (ENCODER_DECODER, PAIRS),
    "speech": (RECOGNIZER, SPEECH),
}


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_safetensors_of_every_model(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *EVERY_MODEL[name])
    out = run_export(run, "safetensors", tmp_path / "out")
    arrays = safetensors_numpy.load_file(out / "model.safetensors")
    flat = flatten_dict(load(run)[1], sep=".")
    assert arrays.keys() == flat.keys()
    assert all(np.array_equal(arrays[path], flat[path]) for path in flat)
    saved = json.loads((out / "tokenizer.json").read_text())
    assert saved == run_directory.read_tokenizer(run).to_dict()
    # The files of the run carry checksums.
    assert run_directory.read_config(out) == run_directory.read_config(run)
    assert len(list(out.iterdir())) == 3


@pytest.mark.slow
def test_a_quantized_run_becomes_what_its_integers_stand_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", GPT2_LIKE, CHAR, Format(8, activation_bits=8))
    out = run_export(run, "safetensors", tmp_path / "out")
    printed = capsys.readouterr().err
    assert "written as float32" in printed
    assert "not rounded" in printed
    arrays = safetensors_numpy.load_file(out / "model.safetensors")
    for path, leaf in flatten_dict(load(run)[1], sep=".").items():
        assert arrays[path].dtype == np.float32
        assert np.array_equal(arrays[path], leaf)
    theirs, _ = load_hf(run_export(run, "hf", tmp_path / "hf"))
    assert_same_logits(theirs, *load(run)[:2])


# --- StableHLO

LOAD_WITHOUT_GPTJAX = """
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np

for folder in sys.argv[1:]:
    program = bytearray((Path(folder) / "forward.stablehlo").read_bytes())
    forward = jax.export.deserialize(program)
    assert forward.platforms == ("cpu", "cuda"), forward.platforms
    for path in Path(folder).glob("inputs_*.npz"):
        inputs = np.load(path)
        logits = forward.call(*(inputs[name] for name in inputs))
        np.save(path.with_suffix(".npy"), logits)
assert not any(name.split(".")[0] in ("gptjax", "flax") for name in sys.modules)
"""


@pytest.mark.slow
def test_programs_run_in_a_process_without_gptjax(tmp_path: Path) -> None:
    expected = {}
    for name, (config, tok) in EVERY_MODEL.items():
        run = make_run(tmp_path / f"run {name}", config, tok)
        out = run_export(run, "stablehlo", tmp_path / name)
        model, params, _ = load(run)
        shapes = [(3, config.block_size), (1, 5)] if name == "gpt" else [(2, config.block_size)]
        for i, (n_batch, n_target) in enumerate(shapes):
            inputs = [some_tokens(tok.vocab_size, (n_batch, n_target))]
            if name in ("pairs", "speech"):
                n_source = 7
                rng = np.random.default_rng(0)
                mask = np.arange(n_source) < rng.integers(1, n_source + 1, (n_batch, 1))
                inputs.append(rng.integers(0, 3, mask.shape).astype(np.int32))
                if name == "speech":
                    inputs[-1] = rng.normal(size=(*mask.shape, 5)).astype(np.float32)
                inputs.append(mask)
            np.savez(out / f"inputs_{i}.npz", *inputs)
            expected[out / f"inputs_{i}.npy"] = logits_of(model, params, *inputs)
    command = [sys.executable, "-c", LOAD_WITHOUT_GPTJAX, *EVERY_MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(expected) == len(EVERY_MODEL) + 1
    for path, ours in expected.items():
        theirs = np.load(path)
        assert theirs.shape == ours.shape
        assert np.abs(ours).max() > 0.1
        np.testing.assert_allclose(theirs, ours, atol=1e-5, rtol=0)


def test_a_program_refuses_what_does_not_fit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SEED, CHAR)
    out = run_export(run, "stablehlo", tmp_path / "out")
    forward = jax.export.deserialize(bytearray((out / "forward.stablehlo").read_bytes()))
    assert forward.call(np.zeros((2, 24), np.int32)).shape == (2, 24, CHAR.vocab_size)
    for inputs in (np.zeros((1, 25), np.int32), np.zeros((1, 3), np.float32)):
        with pytest.raises(ValueError, match=r"refining shapes|Dtype"):
            forward.call(inputs)


def test_a_program_has_no_kernels_of_this_machine(tmp_path: Path) -> None:
    """Which would run on no CPU, and on no other GPU."""
    run = make_run(tmp_path / "run", SEED, CHAR)
    with choice.using(choice.Choice("kernel", norm=True)):
        out = run_export(run, "stablehlo", tmp_path / "out")
    forward = jax.export.deserialize(bytearray((out / "forward.stablehlo").read_bytes()))
    assert forward.call(np.zeros((2, 24), np.int32)).shape == (2, 24, CHAR.vocab_size)


def test_a_program_too_large_is_refused(tmp_path: Path, refused: Refused) -> None:
    run = make_run(tmp_path / "run", SEED, CHAR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stablehlo, "LARGEST_PROGRAM", 1000)
        line = refused(export.main, run, "--to", "stablehlo", "--out", tmp_path / "out")
    assert "--to safetensors" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- what is refused


def test_options_that_gpt2_lacks_are_named_all_at_once(tmp_path: Path, refused: Refused) -> None:
    def named(config: ModelConfig, tok: Tokenizer = CHAR) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        make_run(folder, config, tok)
        before = sorted(tmp_path.iterdir())
        line = refused(export.main, folder, "--to", "hf", "--out", tmp_path / "out")
        assert sorted(tmp_path.iterdir()) == before
        return line.partition("lacks ")[2].partition(";")[0]

    assert named(MODERN) == (
        "--model.position rotary, --model.norm rmsnorm, --model.qk-norm, --model.short-conv 3, "
        "--model.logit-softcap 15.0"
    )
    swiglu = GPTConfig(n_layer=1, n_head=1, n_embd=8, activation="swiglu")
    assert named(swiglu) == "--model.activation swiglu"
    assert named(BigramConfig()) == "Bigram"
    assert named(ENCODER_DECODER, PAIRS) == "EncoderDecoder"
    assert named(RECOGNIZER, SPEECH) == "Speech"


def test_a_head_with_a_bias_and_many_tokens_is_refused(tmp_path: Path, refused: Refused) -> None:
    narrow = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    run = make_run(tmp_path / "run", narrow, CHAR)
    line = refused(export.main, run, "--to", "hf", "--out", tmp_path / "out")
    assert "20 tokens and a width of 8" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_bad_commands_are_one_line(tmp_path: Path, refused: Refused) -> None:
    run = make_run(tmp_path / "run", SEED, CHAR)
    out = tmp_path / "out"

    def refuse(*argv: object) -> str:
        line = refused(export.main, *argv)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        return line

    assert "does not exist" in refuse(tmp_path / "none", "--to", "hf", "--out", out)
    assert "exists" in refuse(run, "--to", "hf", "--out", run)
    assert "--step 7 is not there" in refuse(run, "--to", "hf", "--out", out, "--step", "7")
    assert "onnx" in refuse(run, "--to", "onnx", "--out", out)
    assert "--to" in refuse(run, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        for to, package in (("stablehlo", "flatbuffers"), ("safetensors", "safetensors")):
            patch.setitem(sys.modules, package, None)
            assert f"--to {to} needs the package {package}" in refuse(run, "--to", to, "--out", out)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", SEED, CHAR)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_numpy, "save", fail)
    with pytest.raises(SystemExit) as stop:
        run_export(run, "safetensors", tmp_path / "out")
    assert stop.value.code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
