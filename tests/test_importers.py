"""Imported weights: what Hugging Face computes with them, gptjax computes; the rest is refused."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import hugging_face as hf
import jax
import numpy as np
import pytest
from conftest import Printed, Refused
from hugging_face import EXTRA, safetensors_torch, torch, transformers

from gptjax import models, speech_recognizer, train
from gptjax.commands import import_model, sample
from gptjax.config_encoders import SpeechConfig
from gptjax.data import audio
from gptjax.decoding import beam_search
from gptjax.errors import UserError
from gptjax.interop import whisper
from gptjax.runs import checkpoints

soundfile = pytest.importorskip("soundfile", reason=EXTRA)
tokenizers = pytest.importorskip("tokenizers", reason=EXTRA)
from tokenizers import decoders, pre_tokenizers, processors, trainers  # noqa: E402

REPO = Path(__file__).parents[1]
RECORDINGS = REPO.parent / "shared/speech/fsdd/recordings"
SPECIAL = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm"]
SPECIAL = [f"<|{name}|>" for name in [*SPECIAL, "startofprev", "nospeech", "notimestamps"]]
TIME_STAMPS = [f"<|{i / 50:.2f}|>" for i in range(3)]
TEXT = "zero one two three four five six seven eight nine ten\n" * 20


@functools.cache
def make_tokenizer() -> Any:
    """A byte-level BPE with the special tokens, and the prefix, of Whisper's."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tok.train_from_iterator(TEXT.splitlines(), trainer)
    tok.add_special_tokens(SPECIAL)
    tok.add_tokens(TIME_STAMPS)
    start = [(t, tok.token_to_id(t)) for t in ("<|startoftranscript|>", "<|notimestamps|>")]
    prefix = " ".join(t for t, _ in start)
    tok.post_processor = processors.TemplateProcessing(f"{prefix} $A", special_tokens=start)
    return tok


def make_whisper(**fields: Any) -> Any:
    """Hugging Face's model, every parameter random but the encoder's positions."""
    tok = make_tokenizer()
    start, end = tok.token_to_id("<|startoftranscript|>"), tok.token_to_id("<|endoftext|>")
    sizes = {"d_model": 32, "max_source_positions": 50, "max_target_positions": 24}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 128}
    sizes["vocab_size"] = tok.get_vocab_size() + 4  # as Whisper's, with rows that no token has
    tokens = {"decoder_start_token_id": start, "pad_token_id": end, "eos_token_id": end}
    tokens |= {"bos_token_id": end, "suppress_tokens": None, "begin_suppress_tokens": None}
    config = transformers.WhisperConfig(**{**sizes, **tokens, **fields})
    config._attn_implementation = "eager"
    twin = transformers.WhisperForConditionalGeneration(config)
    return hf.randomise(twin, fixed="model.encoder.embed_positions.weight")


def run_import(folder: Path, out: Path, language: str = "en") -> Path:
    import_model.import_model(import_model.Whisper(folder, out, language))
    return out


@pytest.fixture(scope="module")
def twin() -> Any:
    return make_whisper()


@pytest.fixture(scope="module")
def saved(twin: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf.save(twin, tmp_path_factory.mktemp("whisper") / "hf", make_tokenizer())


@pytest.fixture(scope="module")
def imported(saved: Path) -> Path:
    return run_import(saved, saved.parent / "run")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "hf"))


def inputs(config: Any, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """mel_BTM and tokens_BT."""
    rng = np.random.default_rng(1)
    n_frames = 2 * config.max_source_positions
    mel_BTM = rng.standard_normal((2, n_frames, config.num_mel_bins)).astype(dtype)
    return mel_BTM, rng.integers(0, config.vocab_size, (2, 24)).astype(np.int32)


def differences(twin: Any, run: Path) -> tuple[float, float]:
    """Largest difference of encoder states and of logits, as shares of the largest of them."""
    model, params, _ = hf.load(run)
    mel_BTM, tokens_BT = inputs(twin.config)
    with torch.no_grad():
        theirs = twin(
            torch.from_numpy(mel_BTM).mT.contiguous(),
            decoder_input_ids=torch.from_numpy(tokens_BT).long(),
        )
    mask_BT = np.ones(mel_BTM.shape[:2], bool)
    encoder = speech_recognizer.SpeechEncoder(model.config)
    states_BSD = hf.apply(encoder, {"params": params["encoder"]}, mel_BTM, mask_BT)
    inputs_of_both = {"source": mel_BTM, "source_mask": mask_BT}
    logits_BTV, _ = hf.apply(model, {"params": params}, tokens_BT, **inputs_of_both)
    found = (
        hf.relative(states_BSD, theirs.encoder_last_hidden_state),
        hf.relative(logits_BTV, theirs.logits),
    )
    print(f"relative difference of encoder states {found[0]:.2g}, of logits {found[1]:.2g}")
    return found


# --- the same numbers


@pytest.mark.slow
def test_encoder_states_and_logits_equal_hugging_faces(twin: Any, imported: Path) -> None:
    assert max(differences(twin, imported)) <= 1e-5
    model, params, _ = hf.load(imported)
    n_theirs = sum(p.numel() for p in twin.parameters())
    fixed = twin.model.encoder.embed_positions.weight.numel()
    assert models.count(params) == n_theirs - fixed + 32 * 6  # of the keys, biases of zero
    assert not params["decoder"]["block_1"]["cross_attention"]["key"]["bias"].any()
    assert isinstance(model.config, SpeechConfig)


@pytest.mark.parametrize(
    "name",
    [
        "model.encoder.conv1.weight",
        "model.encoder.layers.1.fc2.bias",
        "model.decoder.layers.0.encoder_attn.k_proj.weight",
        "model.decoder.embed_positions.weight",
    ],
)
def test_the_comparison_tells_one_changed_tensor(
    twin: Any, copied: Path, tmp_path: Path, name: str
) -> None:
    hf.rewrite(copied, lambda tensors: tensors[name].flatten()[:16].add_(0.1))
    assert max(differences(twin, run_import(copied, tmp_path / "run"))) > 1e-4


@pytest.mark.slow
def test_128_mel_bands_as_large_v3_has(tmp_path: Path) -> None:
    twin = make_whisper(num_mel_bins=128)
    run = run_import(hf.save(twin, tmp_path / "hf", make_tokenizer()), tmp_path / "run")
    assert max(differences(twin, run)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_become_float32(dtype: str, tmp_path: Path) -> None:
    twin = make_whisper().to(getattr(torch, dtype))
    run = run_import(hf.save(twin, tmp_path / "hf", make_tokenizer()), tmp_path / "run")
    assert {leaf.dtype for leaf in jax.tree.leaves(hf.load(run)[1])} == {np.dtype("float32")}
    twin = twin.float()
    width, n = twin.config.d_model, twin.config.max_source_positions
    exact = torch.from_numpy(np.array(speech_recognizer.sinusoids(n, width)))
    twin.model.encoder.embed_positions.weight.data.copy_(exact)  # which were rounded, too
    assert max(differences(twin, run)) <= 1e-5


def test_shards_and_a_written_out_head(twin: Any, tmp_path: Path) -> None:
    folder = hf.save(twin, tmp_path / "hf", make_tokenizer(), max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    first = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = safetensors_torch.load_file(first)
    head = twin.proj_out.weight.detach().clone()
    safetensors_torch.save_file({**tensors, "proj_out.weight": head}, first)
    assert max(differences(twin, run_import(folder, tmp_path / "run"))) <= 1e-5
    safetensors_torch.save_file({**tensors, "proj_out.weight": head + 1}, first)
    assert "proj_out.weight is not" in refusal(folder, tmp_path / "other")
    first.unlink()
    assert first.name in refusal(folder, tmp_path / "other")


@pytest.mark.slow
def test_greedy_text_equals_hugging_faces_generate(twin: Any, imported: Path) -> None:
    model, params, tok = hf.load(imported)
    mel_BTM, _ = inputs(twin.config)
    start = torch.tensor([tok.start_ids] * len(mel_BTM))
    # The generation that all its models have: Whisper's own wants tables of languages.
    generate = transformers.GenerationMixin.generate
    settings = transformers.GenerationConfig(
        max_length=24, do_sample=False, eos_token_id=tok.end, pad_token_id=tok.end
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package about itself
        theirs = generate(
            twin,
            torch.from_numpy(mel_BTM).mT.contiguous(),
            generation_config=settings,
            decoder_input_ids=start,
        ).numpy()
    beams = beam_search.beam_search(
        model,
        params,
        mel_BTM,
        np.ones(mel_BTM.shape[:2], bool),
        tok.end,
        start_P=np.array(tok.start_ids, np.int32),
    )
    n_start = len(tok.start_ids)
    assert theirs.shape[1] > n_start + 5
    ours = np.asarray(beams.tokens_BNT)[:, 0, : theirs.shape[1] - n_start]
    np.testing.assert_array_equal(ours, theirs[:, n_start:])
    assert (ours[0] != ours[1]).any()  # the sound matters


@pytest.mark.parametrize("n_mels", [80, 128])
def test_features_equal_whispers(n_mels: int) -> None:
    if not RECORDINGS.is_dir():
        pytest.skip(f"{RECORDINGS} is not there")
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    config = SpeechConfig(n_mels=n_mels, pad_source=True)
    worst = 0.0
    for path in sorted(RECORDINGS.glob("*_7.wav"))[::12]:
        samples_N = audio.read(path)
        # Its way without PyTorch, in float64.
        expected = extractor._np_extract_fbank_features(
            np.pad(samples_N, (0, 480_000 - len(samples_N)))[None], "cpu"
        )[0].T
        whole = extractor(samples_N, sampling_rate=16_000, return_tensors="np").input_features
        ours, mask_BT = audio.features([samples_N], config)
        assert ours.shape == (1, 3000, n_mels)
        assert mask_BT.all()
        worst = max(worst, float(np.abs(ours[0] - expected).max()))
        worst = max(worst, float(np.abs(ours[0] - whole[0].T).max()))
    print(f"largest difference of features: {worst:.2g}")
    assert worst <= 1e-4


# --- the vocabulary


def test_start_tokens_by_language(saved: Path, copied: Path, tmp_path: Path) -> None:
    vocab_size = make_tokenizer().get_vocab_size() + 4

    def start(folder: Path, language: str = "en") -> str:
        tok = whisper.whisper_tokenizer(folder, vocab_size, language)
        assert tok.vocab_size == vocab_size
        assert tok.end == make_tokenizer().token_to_id("<|endoftext|>")
        ids = [make_tokenizer().id_to_token(i) for i in tok.start_ids]
        return " ".join(token.strip("<|>") for token in ids)

    assert start(saved) == "startoftranscript en transcribe notimestamps"
    assert start(saved, "de") == "startoftranscript de transcribe notimestamps"
    generation = json.loads((copied / "generation_config.json").read_text())
    generation["is_multilingual"] = False
    (copied / "generation_config.json").write_text(json.dumps(generation))
    assert start(copied) == "startoftranscript notimestamps"
    with pytest.raises(UserError, match="knows only English"):
        start(copied, "de")
    (copied / "generation_config.json").unlink()
    tokens = make_tokenizer().to_str()
    for language in ("en", "de"):
        tokens = tokens.replace(f"<|{language}|>", f"<|no {language}|>")
    (copied / "tokenizer.json").write_text(tokens)
    assert start(copied) == "startoftranscript notimestamps"


def test_text_goes_through_the_vocabulary_without_special_tokens(imported: Path) -> None:
    tok = hf.load(imported)[2]
    theirs = make_tokenizer()
    ids = tok.target.encode(" seven eight\n")
    assert ids.tolist() == theirs.encode(" seven eight\n", add_special_tokens=False).ids
    assert len(ids) < 8
    special = [theirs.token_to_id(t) for t in (*SPECIAL, *TIME_STAMPS)]
    no_token = tok.vocab_size - 1
    assert tok.target.decode([*special[:3], *ids, *special[3:], no_token]) == " seven eight\n"


# --- what is refused


def refusal(folder: Path, out: Path, language: str = "en") -> str:
    """The line that refuses, after which nothing is left."""
    before = set(out.parent.iterdir())
    with pytest.raises(UserError) as caught:
        run_import(folder, out, language)
    assert set(out.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    print(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"activation_function": "gelu_new"}, "activation_function is 'gelu_new'"),
        ({"scale_embedding": True}, "scale_embedding is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads is 2"),
        ({"encoder_ffn_dim": 64}, "encoder_ffn_dim is 64"),
        ({"decoder_ffn_dim": 64}, "decoder_ffn_dim is 64"),
        ({"d_model": "wide"}, "d_model is 'wide'"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "n-head 5"),
        ({"vocab_size": 100}, "different models"),
        ({"max_target_positions": 25}, "embed_positions.weight (24, 32) for (25, 32)"),
    ],
)
def test_another_architecture_is_refused(
    copied: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    hf.reconfigure(copied, **fields)
    assert words in refusal(copied, tmp_path / "run")


def test_tensors_that_do_not_fit_are_named(copied: Path, tmp_path: Path) -> None:
    name = "model.decoder.layers.1.fc1.weight"
    original = (copied / "model.safetensors").read_bytes()

    def after(change: Any) -> str:
        (copied / "model.safetensors").write_bytes(original)
        hf.rewrite(copied, change)
        return refusal(copied, tmp_path / "run")

    assert f"missing: {name}" in after(lambda tensors: tensors.pop(name))
    assert "unknown: lora.weight" in after(lambda t: t.update({"lora.weight": torch.ones(2)}))
    wrong = after(lambda tensors: tensors.update({name: torch.ones(128, 31)}))
    assert f"of another shape: {name} (128, 31) for (128, 32)" in wrong
    many = after(lambda tensors: [tensors.pop(n) for n in list(tensors) if "decoder" in n])
    assert " more" in many
    assert len(many) < 500
    positions = "model.encoder.embed_positions.weight"
    assert "away from sinusoids" in after(lambda tensors: tensors[positions].mul_(1.01))
    assert "NaN or infinite" in after(lambda tensors: tensors[positions].fill_(torch.nan))
    name_and_shape = {positions: torch.tensor(1.0)}
    assert "of another shape" in after(lambda tensors: tensors.update(name_and_shape))
    (copied / "model.safetensors").write_bytes(original[:1000])
    assert "cannot be read" in refusal(copied, tmp_path / "run")


def test_folders_that_lack_something_are_refused(copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "is no folder" in refusal(tmp_path / "nowhere", out)
    assert "one of de, en" in refusal(copied, out, "xx")
    (copied / "tokenizer.json").write_text("{}")
    assert "is no tokenizer" in refusal(copied, out)
    (copied / "tokenizer.json").write_text('{"added_tokens": 3}')
    assert "tokenizer.json: added_tokens is 3, but must be a list" in refusal(copied, out)
    (copied / "tokenizer.json").unlink()
    assert "AutoTokenizer" in refusal(copied, out)
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "safe_serialization=True" in refusal(copied, out)
    (copied / "pytorch_model.bin").unlink()
    assert "has no model.safetensors" in refusal(copied, out)
    (copied / "config.json").write_text("no JSON")
    assert "config.json is not JSON" in refusal(copied, out)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "kept").write_text("mine")
    assert "exists" in refusal(saved, out)
    assert (out / "kept").read_text() == "mine"
    part = tmp_path / "other.part"
    part.mkdir()
    assert str(part) in refusal(saved, tmp_path / "other")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.Checkpoints, "save_params", fail)
    with pytest.raises(OSError, match="No space"):
        run_import(saved, tmp_path / "third")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "other.part"}


# --- from a shell


@pytest.mark.slow
def test_the_command_makes_a_run_that_sample_py_transcribes_with(
    saved: Path, tmp_path: Path, printed: Printed
) -> None:
    out = tmp_path / "runs" / "tiny"
    command = ["-m", "gptjax", "import", "whisper", saved, "--out", out, "--language", "de"]
    command = [sys.executable, *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert f"gptjax sample {out} --audio" in done.stdout
    made = {p.name for p in out.iterdir()}
    assert made == {"config.json", "tokenizer.json", "environment.json", "checkpoints"}
    origin = json.loads((out / "environment.json").read_text())["data"]
    assert str(saved) in origin["source"]
    weights = (saved / "model.safetensors").read_bytes()
    assert origin["sha256"] == hashlib.sha256(weights).hexdigest()
    if not RECORDINGS.is_dir():
        pytest.skip(f"{RECORDINGS} is not there, so sample.py has nothing to transcribe")
    wav = RECORDINGS / "7_george_0.wav"
    record = json.loads(printed(sample.main, out, "--audio", wav, "--json"))
    assert record["audio"] == str(wav)
    assert record["step"] == 0
    assert isinstance(record["text"], str)


@pytest.mark.parametrize("arguments", [[], ["gpt3"], ["whisper"], ["whisper", "nowhere"]])
def test_a_wrong_command_line_is_one_line(arguments: list[str], refused: Refused) -> None:
    refused(import_model.main, *arguments)


def test_train_py_does_not_continue_an_imported_run(
    imported: Path, tmp_path: Path, refused: Refused
) -> None:
    for i in range(8):
        clip = np.sin(np.arange(8000) * 0.1 * (i + 1)).astype(np.float32)
        soundfile.write(tmp_path / f"{i}.wav", clip, 16_000)
    lines = [json.dumps({"audio": f"{i}.wav", "text": "one two"}) for i in range(8)]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines) + "\n")
    config = tmp_path / "small.py"
    config.write_text(
        "from gptjax.config import Config\n"
        "from gptjax.config_encoders import SpeechConfig, SpeechDataConfig\n"
        "model = SpeechConfig(n_layer=1, n_head=1, n_embd=8, n_encoder_layer=1)\n"
        "config = Config(model=model, data=SpeechDataConfig())\n"
    )
    before = sorted(p.name for p in imported.iterdir())
    data = ("--data.path", tmp_path / "clips.jsonl", "--data.val-fraction", "0.3")
    for resume in ((), ("--resume",)):
        flags = ("--config", config, *data, "--run-dir", imported, *resume)
        assert "no optimizer state" in refused(train.main, *flags)
    assert sorted(p.name for p in imported.iterdir() if p.name != "lock") == before
