"""A GPT-2 checkpoint as a run: the same numbers and text, and a place to start training from."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hugging_face as hf
import jax
import numpy as np
import pytest
from conftest import Printed, Refused
from hugging_face import EXTRA, torch, transformers

from gptjax import evaluation, models, train
from gptjax.command_line import parse
from gptjax.commands import import_model, prepare
from gptjax.config import BigramConfig, Config, GPTConfig, TextDataConfig, TrainConfig
from gptjax.config_encoders import (
    EncoderDecoderConfig,
    PairsDataConfig,
    SpeechConfig,
    SpeechDataConfig,
)
from gptjax.data import dataset as data
from gptjax.data.texts import load as load_text
from gptjax.data.tokenizer import BPETokenizer, CharTokenizer, PairTokenizer, SpeechTokenizer
from gptjax.decoding import sampling
from gptjax.errors import UserError
from gptjax.interop import gpt2
from gptjax.quantization.quant_array import Format, quantize_params
from gptjax.runs import init_from as finetune
from gptjax.runs import run_directory
from gptjax.runs.metrics import read_metrics
from gptjax.scale.sharding import with_sharding

tokenizers = pytest.importorskip("tokenizers", reason=EXTRA)

REPO = Path(__file__).parents[1]
TEXT = "the cat sat on the mat, the dog sat on the log\n" * 40
SIZES = {"n-layer": "2", "n-head": "4", "n-embd": "32", "block-size": "32"}
MODEL_FLAGS = [word for name, size in SIZES.items() for word in (f"--model.{name}", size)]


@functools.cache
def make_tokenizer() -> Any:
    """A byte-level BPE with the one special token of GPT-2's."""
    tok = tokenizers.ByteLevelBPETokenizer()
    tok.train_from_iterator(TEXT.splitlines(keepends=True), 280, show_progress=False)
    tok.add_special_tokens(["<|endoftext|>"])
    return tok


def make_gpt2(**fields: Any) -> Any:
    """Hugging Face's model, every parameter random; its table has rows that no token has."""
    tok = make_tokenizer()
    end = tok.token_to_id("<|endoftext|>")
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 32}
    sizes |= {"vocab_size": tok.get_vocab_size() + 3, "bos_token_id": end, "eos_token_id": end}
    config = transformers.GPT2Config(**{**sizes, **fields})
    return hf.randomise(transformers.GPT2LMHeadModel(config))


@pytest.fixture(scope="module")
def twin() -> Any:
    return make_gpt2()


@pytest.fixture(scope="module")
def saved(twin: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf.save(twin, tmp_path_factory.mktemp("gpt2") / "hf", make_tokenizer())


@pytest.fixture(scope="module")
def imported(saved: Path) -> Path:
    return hf.run_import("gpt2", saved, saved.parent / "run")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "hf"))


def difference(twin: Any, run: Path) -> float:
    """The largest of logits, as a share of the largest of them."""
    model, params, tok = hf.load(run)
    tokens_BT = np.random.default_rng(1).integers(0, tok.vocab_size, (2, 32)).astype(np.int32)
    with torch.no_grad():
        theirs = twin(torch.from_numpy(tokens_BT).long()).logits
    ours, _ = hf.apply(model, {"params": params}, tokens_BT)
    found = hf.relative(ours, theirs)
    print(f"relative difference of logits {found:.2g}")
    return found


# --- the same numbers and text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 128},
        {"activation_function": "relu", "reorder_and_upcast_attn": True},
    ],
    ids=["gpt2", "untied", "relu"],
)
def test_logits_equal_hugging_faces(fields: dict[str, Any], tmp_path: Path) -> None:
    twin = make_gpt2(**fields)
    run = hf.run_import("gpt2", hf.save(twin, tmp_path / "hf", make_tokenizer()), tmp_path / "run")
    assert difference(twin, run) <= 1e-5
    if "tie_word_embeddings" in fields:
        assert not hf.load(run)[1]["head"]["bias"].any()


@pytest.mark.parametrize(
    "name",
    ["wpe.weight", "h.1.attn.c_attn.bias", "h.0.mlp.c_proj.weight", "ln_f.bias"],
)
def test_the_comparison_tells_one_changed_tensor(
    twin: Any, copied: Path, tmp_path: Path, name: str
) -> None:
    hf.rewrite(copied, lambda tensors: tensors[f"transformer.{name}"].flatten()[:16].add_(0.1))
    assert difference(twin, hf.run_import("gpt2", copied, tmp_path / "run")) > 1e-4


def test_the_oldest_form_of_a_checkpoint(copied: Path, tmp_path: Path) -> None:
    """Names without a prefix, masks among the tensors, vocab.json and merges.txt."""
    expected = hf.load(hf.run_import("gpt2", copied, tmp_path / "new"))

    def as_of_old(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for i in range(2):
            tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    hf.rewrite(copied, as_of_old)
    (copied / "tokenizer.json").unlink()
    make_tokenizer().save_model(str(copied))
    vocab = json.loads((copied / "vocab.json").read_text())
    (copied / "vocab.json").write_text(json.dumps({**vocab, "<|endoftext|>": len(vocab)}))
    model, params, tok = hf.load(hf.run_import("gpt2", copied, tmp_path / "old"))
    assert model == expected[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])
    text = TEXT[:60] + "Zebra €\n\n  <|endoftext|>the"
    assert tok.encode(text).tolist() == expected[2].encode(text).tolist()
    assert tok.start == expected[2].start
    assert tok.vocab_size == expected[2].vocab_size


def test_greedy_text_equals_hugging_faces_generate(
    twin: Any, saved: Path, imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    their_tok = transformers.PreTrainedTokenizerFast(tokenizer_file=str(saved / "tokenizer.json"))
    prompt = "the cat sat on"
    inputs = their_tok(prompt, return_tensors="pt")
    end = twin.config.eos_token_id
    made = twin.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=end)[0]
    n_prompt = inputs["input_ids"].shape[1]
    assert len(made) == n_prompt + 20
    model, params, tok = hf.load(imported)
    ids = tok.encode(prompt)
    assert ids.tolist() == inputs["input_ids"][0].tolist()
    greedy = sampling.Sampler(temperature=0)
    written = sampling.complete(model, params, ids[None], 20, sampler=greedy)[0]
    assert written.tolist() == made[n_prompt:].tolist()
    assert tok.start == end


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "silu"}, "activation_function is 'silu'"),
        ({"activation_function": ["gelu"]}, "activation_function is ['gelu']"),
        ({"n_inner": 64}, "n_inner is 64"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"resid_pdrop": "much"}, "resid_pdrop is 'much'"),
        ({"n_embd": 32.5}, "n_embd is 32.5"),
        ({"n_head": 5}, "n-head 5"),
        ({"vocab_size": 100}, "different models"),
        ({"n_positions": 33}, "wpe.weight (32, 32) for (33, 32)"),
        ({"n_layer": 3}, "missing: transformer.h.2.ln_1.weight"),
        ({"n_layer": 1}, "unknown: transformer.h.1.attn.c_attn.bias"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
    ],
)
def test_another_architecture_is_refused(
    copied: Path, tmp_path: Path, refused: Refused, fields: dict[str, Any], words: str
) -> None:
    hf.reconfigure(copied, **fields)
    assert words in refused(import_model.main, "gpt2", copied, "--out", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_files_that_do_not_fit_are_refused(copied: Path, tmp_path: Path, refused: Refused) -> None:
    original = (copied / "model.safetensors").read_bytes()

    def refuse() -> str:
        line = refused(import_model.main, "gpt2", copied, "--out", tmp_path / "run")
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]
        return line

    embedding = "transformer.wte.weight"
    hf.rewrite(copied, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding] + 1}))
    assert "lm_head.weight is not transformer.wte.weight" in refuse()
    (copied / "model.safetensors").write_bytes(original)
    hf.rewrite(copied, lambda tensors: tensors.update({"score.weight": torch.ones(2, 32)}))
    assert "unknown: score.weight" in refuse()
    (copied / "model.safetensors").write_bytes(original)
    (copied / "tokenizer.json").write_text("{}")
    assert "is no tokenizer" in refuse()
    (copied / "tokenizer.json").unlink()
    (copied / "vocab.json").write_text("{}")
    assert "vocab.json and merges.txt" in refuse()
    (copied / "merges.txt").write_text("a b c d\n")
    assert "vocab.json is no tokenizer" in refuse()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "index.json has no weight_map"),
        ("[]", "index.json: it is [], but must be an object"),
        ('{"weight_map": []}', "index.json: weight_map is [], but must be an object"),
        ('{"weight_map": {"wte": 3}}', "index.json: weight_map.wte is 3, but must be a text"),
        ('{"weight_map": {}}', "index.json names no file"),
        ('{"weight_map": {"wte": "/"}}', "index.json names no file"),
        ('{"weight_map": {"wte": "../none"}}', "hf/none cannot be read"),
        ("{" * 9999, "index.json is not JSON"),
        ("[" * 9999, "index.json is nested more than 100 deep"),
    ],
)
def test_a_malformed_index_is_one_line(
    copied: Path, tmp_path: Path, refused: Refused, content: str, words: str
) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors.index.json").write_text(content)
    line = refused(import_model.main, "gpt2", copied, "--out", tmp_path / "run")
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}, "overflow"),
        ({"dtype": "F32", "shape": [0, 10**18], "data_offsets": [0, 0]}, "of another shape"),
        ({"dtype": "F32", "shape": [2**64], "data_offsets": [0, 4]}, "cannot be read"),
        ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, "cannot be read"),
        ({"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "of another shape"),
    ],
    ids=str,
)
def test_an_absurd_header_of_safetensors_is_one_line(
    copied: Path, tmp_path: Path, refused: Refused, header: dict[str, Any], words: str
) -> None:
    text = json.dumps({"transformer.wte.weight": header}).encode()
    size = header["data_offsets"][1]
    content = len(text).to_bytes(8, "little") + text + bytes(size)
    (copied / "model.safetensors").write_bytes(content)
    line = refused(import_model.main, "gpt2", copied, "--out", tmp_path / "run")
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.flatten().index_fill(0, torch.tensor([3, 5]), torch.nan).view(t.shape),
            "2 of the 1,024 numbers of transformer.h",
        ),
        (
            lambda t: t.flatten().index_fill(0, torch.tensor([0]), -torch.inf).view(t.shape),
            "1 of the 1,024 numbers of transformer.h",
        ),
        (lambda t: t.to(torch.int32), "c_proj.weight is I32, but must be F32, F16 or BF16"),
        (lambda t: t.to(torch.float8_e4m3fn), "is F8_E4M3, but must be F32, F16 or BF16"),
    ],
    ids=["nan", "infinite", "integers", "eight bits"],
)
def test_weights_that_are_no_numbers_are_refused_by_name(
    copied: Path, tmp_path: Path, refused: Refused, change: Any, words: str
) -> None:
    name = "transformer.h.1.attn.c_proj.weight"
    hf.rewrite(copied, lambda tensors: tensors.update({name: change(tensors[name])}))
    line = refused(import_model.main, "gpt2", copied, "--out", tmp_path / "run")
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def old_tokenizer(folder: Path, **files: Any) -> tuple[Any, int]:
    """(the tokenizer of transformers, its number of tokens): vocab.json, merges.txt and others."""
    folder.mkdir()
    make_tokenizer().save_model(str(folder))
    n = make_tokenizer().token_to_id("<|endoftext|>")
    vocab = json.loads((folder / "vocab.json").read_text()) | {"<|endoftext|>": n}
    for name, content in {"vocab": vocab, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return functools.partial(transformers.AutoTokenizer.from_pretrained, folder), n


class Config_(dict):  # noqa: N801 - Config is ours
    """A config.json of Hugging Face, as far as gpt2_tokenizer reads it."""


def test_added_and_special_tokens_are_those_of_hugging_face(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, n = old_tokenizer(tmp_path / "plain")
    start, pad, user = "<|startoftext|>", "<|pad|>", "<user>"
    end: Any = {"content": "<|endoftext|>", "lstrip": False, "normalized": True}
    theirs, _ = old_tokenizer(
        tmp_path / "hf",
        added_tokens={start: n + 1, pad: n + 2, user: n + 3},
        special_tokens_map={
            "bos_token": start,
            "eos_token": end,
            "pad_token": pad,
        },
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer"},
    )
    theirs = theirs()
    config: Any = Config_(bos_token_id=n + 1, eos_token_id=[n])
    ours = gpt2.gpt2_tokenizer(tmp_path / "hf", config, n + 4)
    text = f"{start}the cat{user} sat <|endoftext|>on{pad} the mat"
    ids = theirs(text)["input_ids"]
    assert ours.encode(text).tolist() == ids
    assert {n, n + 1, n + 2, n + 3} <= set(ids)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert "<user>" in ours.decode(ids)
    assert (ours.start, ours.ends) == (n + 1, (n,))
    options = tmp_path / "hf/generation_config.json"
    options.write_text(json.dumps({"eos_token_id": [n, n + 2]}))
    assert gpt2.gpt2_tokenizer(tmp_path / "hf", config, n + 4).ends == (n, n + 2)
    capsys.readouterr()
    options.write_text(json.dumps({"eos_token_id": [n, 99_999, -1]}))
    assert gpt2.gpt2_tokenizer(tmp_path / "hf", config, n + 4).ends == (n,)
    said = capsys.readouterr().err.splitlines()
    assert [line.split("eos_token_id ")[1].split()[0] for line in said] == ["99999", "-1"]
    options.write_text(json.dumps({"eos_token_id": "end"}))
    with pytest.raises(UserError, match="eos_token_id is 'end', but must be a whole number or a"):
        gpt2.gpt2_tokenizer(tmp_path / "hf", config, n + 4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("added_tokens", {"<a>": 999}, "'<a>' has the id 999, but the vocabulary gives it"),
        ("added_tokens", {"the": 0}, "'the' has the id 0, but the vocabulary gives it"),
        ("added_tokens", {"<a>": "1"}, "added_tokens.json: <a> is '1', but must be a whole number"),
        ("added_tokens", [], "added_tokens.json: it is [], but must be an object"),
        ("special_tokens_map", {"bos_token": 3}, "bos_token is 3, but must be a text or an object"),
        ("special_tokens_map", {"bos_token": "<new>"}, "tokens, but config.json"),
        ("special_tokens_map", {"eos_token": {}}, "has no eos_token.content"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}, "has 'x', but"),
        ("tokenizer_config", {"added_tokens_decoder": {"9": {"content": "<a>"}}}, "has the id 9"),
    ],
)
def test_special_tokens_that_cannot_be_kept_are_refused(
    tmp_path: Path, name: str, content: Any, words: str
) -> None:
    _, n = old_tokenizer(tmp_path / "hf", **{name: content})
    with pytest.raises(UserError) as caught:
        gpt2.gpt2_tokenizer(tmp_path / "hf", Config_(), n + 1)  # pyright: ignore
    assert words in str(caught.value)


# --- fine-tuning


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """configs/finetune_gpt2.py, for a few quick steps on another text than the tokenizer's."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "text.txt").write_text("a rat ran on the mat, then the hen sat\n" * 60)
    (folder / "tiny.py").write_text(
        f"""
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {str(REPO / "configs")!r})
from finetune_gpt2 import config as shipped

config = dataclasses.replace(
    shipped,
    model=dataclasses.replace(shipped.model, dropout=0.0),
    data=dataclasses.replace(shipped.data, path=Path({str(folder / "text.txt")!r})),
    optim=dataclasses.replace(shipped.optim, learning_rate=3e-3, warmup_steps=0),
    train=dataclasses.replace(
        shipped.train, max_steps=12, batch_size=4, micro_batch_size=4, eval_interval=6,
        log_interval=1, sample_tokens=0, init_from=None,
    ),
)
"""
    )
    return folder / "tiny.py"


def run_train(config_file: Path, run: Path, *flags: object) -> dict[int, float]:
    """Trains in this process; val_loss by step."""
    train.main(["--config", str(config_file), "--run-dir", str(run), *map(str, flags)])
    metrics = read_metrics(run)
    return {m["step"]: m["val_loss"] for m in metrics if "val_loss" in m}


@pytest.mark.slow
def test_fine_tuning_starts_from_the_imported_loss_and_lowers_it(
    imported: Path, config_file: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(imported, tmp_path / "source"))
    flags = [*MODEL_FLAGS, "--train.init-from", source]
    losses = run_train(config_file, tmp_path / "run", *flags, "--train.max-steps", 6)

    model, params, tok = hf.load(imported)
    text = load_text(TextDataConfig(path=config_file.parent / "text.txt"), 32, tok)
    start = evaluation.make_evaluate(model)(params, text.validation(Config(model.config), 4))
    assert losses[0] == pytest.approx(start, rel=1e-5)
    assert losses[6] < losses[0] - 0.3
    assert run_directory.read_tokenizer(tmp_path / "run").to_dict() == tok.to_dict()

    # What it started from is not asked for again, neither to continue nor to sample.
    shutil.rmtree(source)
    losses = run_train(config_file, tmp_path / "run", *flags)
    assert losses[12] < losses[6]
    assert list(losses) == [0, 6, 12]
    assert hf.load(tmp_path / "run")[2].to_dict() == tok.to_dict()


def test_a_shorter_context_takes_the_first_positions(imported: Path, config_file: Path) -> None:
    config, _ = parse(["--config", str(config_file), *MODEL_FLAGS])
    short = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, block_size=8),
        train=dataclasses.replace(config.train, init_from=imported),
    )
    tok = finetune.vocabulary(short, imported.parent / "new")
    assert tok is not None
    model = models.build(short.model, tok)
    shapes = models.shapes(model)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = finetune.parameters(short, tok, with_sharding(shapes, one))
    _, theirs, _ = hf.load(imported)
    position = params.pop("position_embedding")["table"]
    assert position.shape == (8, 32)
    np.testing.assert_array_equal(position, theirs.pop("position_embedding")["table"][:8])
    jax.tree.map(np.testing.assert_array_equal, params, theirs)


@pytest.mark.slow
def test_what_cannot_be_started_from_is_refused(
    imported: Path, config_file: Path, tmp_path: Path, refused: Refused
) -> None:
    def refuse(source: Path, *flags: str, model: list[str] = MODEL_FLAGS) -> str:
        argv = ["--config", config_file, "--run-dir", tmp_path / "run", "--train.init-from", source]
        line = refused(train.main, *argv, *model, *flags)
        assert not (tmp_path / "run").exists()
        return line

    assert "does not exist" in refuse(tmp_path / "none")
    line = refuse(imported, model=[])
    assert "add --model.block-size 32 --model.n-layer 2 --model.n-head 4 --model.n-embd 32" in line
    line = refuse(imported, "--model.no-tie-embeddings", "--model.position", "rotary")
    assert line.endswith("add --model.position learned --model.tie-embeddings")
    assert "--model.no-qk-norm" in refuse(imported, "--model.qk-norm")
    # Positions that were never learned.
    assert "--model.block-size 32" in refuse(imported, "--model.block-size", "64")

    char = CharTokenizer("\n abcd")

    def some_params(config: Any) -> Any:
        shapes = models.shapes(models.build(config, char))
        return jax.tree.map(lambda p: np.ones(p.shape, p.dtype), shapes)

    params = some_params(BigramConfig())

    def make(name: str, config: Any, params: Any, files: Any = None) -> Path:
        return hf.save_run(tmp_path / name, config, char, params, files)

    assert "is a Bigram, but this is a GPT" in refuse(make("bigram", BigramConfig(), params))
    form = Format(8)
    quantized = jax.jit(quantize_params, static_argnums=1)(params, form)
    folder = make("int8", BigramConfig(), quantized, {"format.json": dataclasses.asdict(form)})
    assert "is quantized" in refuse(folder)
    shutil.rmtree(folder / "checkpoints" / "0")
    (folder / "format.json").unlink()
    assert "has no checkpoint yet" in refuse(folder)

    # A vocabulary of few characters does not stretch to any text.
    tiny = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    flags = "--model.n-layer 1 --model.n-head 1 --model.n-embd 8 --model.block-size 8"
    flags += " --model.activation relu --model.no-attention-bias --model.no-tie-embeddings"
    assert "never saw" in refuse(make("chars", tiny, some_params(tiny)), model=flags.split())


def test_token_files_of_another_vocabulary_are_refused(
    imported: Path, config_file: Path, tmp_path: Path, refused: Refused
) -> None:
    flags = ["--tokenizer", "byte", "--out", str(tmp_path / "tokens")]
    prepare.main([*flags, str(config_file.parent / "text.txt")])
    argv = ["--config", config_file, "--run-dir", tmp_path / "run", "--train.init-from", imported]
    line = refused(train.main, *argv, *MODEL_FLAGS, "--data.path", tmp_path / "tokens")
    assert "prepared with another tokenizer" in line


def test_pairs_and_speech_are_read_with_the_vocabulary_that_is_given(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason=EXTRA)
    (tmp_path / "pairs.tsv").write_text("".join(f"{'ab' * i}\t{'x' * i}\n" for i in range(1, 9)))
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", np.sin(np.arange(4000) * (i + 1) / 9), 16_000)
    lines = [json.dumps({"audio": f"{i}.wav", "text": "x x"}) for i in range(8)]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines) + "\n")
    sizes: dict[str, int] = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_encoder_layer": 1}
    pair = PairTokenizer(CharTokenizer("abc"), CharTokenizer("xyz"))
    speech = SpeechTokenizer(CharTokenizer(" xyz"), (5, 6), 4, 9)  # as Whisper's: rows of its own
    cases = [
        ("pairs.tsv", EncoderDecoderConfig(**sizes), PairsDataConfig, pair),
        ("clips.jsonl", SpeechConfig(**sizes), SpeechDataConfig, speech),
    ]
    for name, model, data_config, tok in cases:
        folder = hf.save_run(tmp_path / f"run of {name}", model, tok, {"w": np.ones(1)})
        config = Config(
            model,
            data_config(path=tmp_path / name, val_fraction=0.25),
            train=TrainConfig(batch_size=2, init_from=folder),
        )
        given = finetune.vocabulary(config, tmp_path / "new")
        assert data.load(config, given).tokenizer.to_dict() == tok.to_dict()
        assert data.load(config).tokenizer.to_dict() != tok.to_dict()


# --- from a shell


@pytest.mark.slow
def test_the_command_makes_a_run_that_sample_py_writes_with(
    saved: Path, tmp_path: Path, printed: Printed
) -> None:
    out = tmp_path / "run"
    said = printed(import_model.main, "gpt2", saved, "--out", out)
    assert f"gptjax sample {out} --prompt" in said
    flags = ["--prompt", "the cat", "--max-new-tokens", "12", "--greedy", "--json"]
    command = [sys.executable, "sample.py", out, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    model, params, tok = hf.load(out)
    greedy = sampling.Sampler(temperature=0)
    written = sampling.complete(model, params, tok.encode("the cat")[None], 12, sampler=greedy)
    assert record["text"] == tok.decode(written[0])


def test_a_tokenizer_that_others_made_survives_json() -> None:
    tok = BPETokenizer(make_tokenizer()._tokenizer.to_str(), 290, 280)
    again = BPETokenizer(tok.to_dict()["model"], tok.to_dict()["vocab_size"], 280)
    assert (again.vocab_size, again.start) == (290, 280)
    assert again.decode([289, *again.encode("the cat"), 280]) == "the cat"


def test_the_shipped_config_is_gpt2_small() -> None:
    config, _ = parse(["--config", str(REPO / "configs/finetune_gpt2.py")])
    assert isinstance(config.train, TrainConfig)
    assert config.train.init_from == Path("runs/gpt2")
    theirs = transformers.GPT2Config()
    shapes = models.shapes(models.build(config.model, theirs.vocab_size))
    with torch.device("meta"):
        twin = transformers.GPT2LMHeadModel(theirs)
    fewer = (theirs.n_positions - config.model.block_size) * theirs.n_embd
    assert models.count(shapes) == sum(p.numel() for p in twin.parameters()) - fewer
