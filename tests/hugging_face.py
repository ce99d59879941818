"""Helpers for tests that compare with Hugging Face: models with random weights, and their files."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gptjax import models
from gptjax.commands import import_model
from gptjax.config import Config, ModelConfig
from gptjax.config_encoders import DATA_OF_MODEL
from gptjax.data.tokenizer import Tokenizer
from gptjax.runs import checkpoints, run_directory

EXTRA = "an extra: pip install -e '.[test]'"
torch = pytest.importorskip("torch", reason=EXTRA)
safetensors_torch = pytest.importorskip("safetensors.torch", reason=EXTRA)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the package about itself
    transformers = pytest.importorskip("transformers", reason=EXTRA)

# Compiled once for each model and shape.
apply = jax.jit(lambda model, *args, **inputs: model.apply(*args, **inputs), static_argnums=0)


def randomise(twin: Any, fixed: str = "") -> Any:
    """Every parameter random, large enough that greedy choices are far from ties."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name != fixed:
                scale = 0.05 if parameter.ndim == 1 else 0.2
                noise = scale * torch.randn(parameter.shape, generator=generator)
                is_gain = ("norm" in name or "ln_" in name) and name.endswith("weight")
                parameter.copy_(1 + noise if is_gain else noise)
    return twin.eval()


def save(twin: Any, folder: Path, tokenizer: Any, **options: Any) -> Path:
    """Writes a folder as Hugging Face does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package about itself
        twin.save_pretrained(folder, **options)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def run_import(kind: str, folder: Path, out: Path, *flags: str) -> Path:
    import_model.main([kind, str(folder), "--out", str(out), *flags])
    return out


def save_run(
    folder: Path, config: ModelConfig, tok: Tokenizer, params: Any, files: Any = None
) -> Path:
    """A finished run with these parameters."""
    origin = {"source": "a test", "sha256": "0"}
    whole = Config(config, DATA_OF_MODEL[type(config)]())
    with run_directory.new_run(folder) as part:
        checkpoints.save_finished(part, whole, tok, params, origin, files)
    return folder


def load(run: Path) -> tuple[Any, Any, Any]:
    """(model, parameters, tokenizer) of a run."""
    tok = run_directory.read_tokenizer(run)
    model = models.build(run_directory.read_config(run).model, tok)
    return model, checkpoints.load_params(run, model)[1], tok


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the dict of tensors."""
    path = folder / "model.safetensors"
    tensors = {name: t.clone() for name, t in safetensors_torch.load_file(path).items()}
    change(tensors)
    safetensors_torch.save_file(tensors, path)


def reconfigure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference, as a share of the largest value."""
    expected = theirs.float().numpy()
    assert ours.shape == expected.shape
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())
