"""The cache of compiled programs, and programs compiled ahead of time."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from gptjax import pace
from gptjax.command_line import parse
from gptjax.config import Config, TextDataConfig, TrainConfig
from gptjax.data import texts, tokenizer
from gptjax.scale import compilation, devices
from gptjax.scale.compilation import CompileAhead

ROOT = Path(__file__).parents[1]

# Compiles one program with the cache; prints whether there is one, and what it computed.
USES_CACHE = """
import os, resource, sys, warnings
from unittest import mock
import jax, jax.numpy as jnp
from gptjax.scale import compilation, devices
warnings.simplefilter("error")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"] or None)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
if sys.argv[1] == "full":  # every file of more than 500 bytes fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
with mock.patch.object(devices, "on_cpu", lambda: sys.argv[1] == "cpu"):
    folder = compilation.use_cache(sys.argv[1] != "off")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(folder, float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))[0, 0]))
"""


def use_cache(cache: Path, how: str = "accelerator", own: object = "") -> str:
    """What USES_CACHE printed; it must not print anything else."""
    environment = {"GPTJAX_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": str(own)}
    done = forked.run("-c", USES_CACHE, how, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*-cache")}


@pytest.mark.slow
def test_an_accelerators_programs_are_kept_and_found_again(tmp_path: Path) -> None:
    """Neither a program that is damaged nor a full disk fails a run."""
    first = use_cache(tmp_path)
    kept = entries(tmp_path)
    assert first.startswith(f"{tmp_path}/compiled ")
    assert any("lambda" in name for name in kept)
    assert use_cache(tmp_path) == first
    assert entries(tmp_path) == kept
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:50])  # as a process that was killed leaves it
    assert use_cache(tmp_path) == first
    assert use_cache(tmp_path / "other", "full").split()[1] == first.split()[1]


@pytest.mark.slow
def test_nothing_is_kept_on_a_cpu(tmp_path: Path) -> None:
    assert use_cache(tmp_path, "cpu").startswith("None ")
    assert not entries(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cpu", "accelerator", "off"])
def test_the_users_own_folder_is_respected_and_so_is_the_flag(tmp_path: Path, how: str) -> None:
    own = tmp_path / "own"
    printed = use_cache(tmp_path, how, own)
    assert printed.startswith("None " if how == "off" else f"{own} ")
    assert bool(entries(own)) == (how != "off")
    assert not (tmp_path / "compiled").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert use_cache(file).startswith("None ")


@pytest.mark.slow
def test_two_processes_may_use_it_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(use_cache, [tmp_path] * 2))) == 1


def test_too_little_room_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compilation._is_usable(tmp_path / "new")
    monkeypatch.setattr(compilation, "FREE_BYTES", 1 << 60)
    assert not compilation._is_usable(tmp_path / "new")


def test_the_oldest_programs_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "MOST_BYTES", 250)
    for age in range(5):
        path = tmp_path / f"{age}-cache"
        path.write_bytes(b"x" * (100 if age else 0))
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "other").write_bytes(b"x" * 1000)
    compilation._forget_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-cache", "2-cache", "other"]


def test_the_flag_is_an_option_of_train() -> None:
    path = str(ROOT / "configs" / "debug.py")
    assert parse(["--config", path])[1].compilation_cache
    assert not parse(["--config", path, "--no-compilation-cache"])[1].compilation_cache


# --- compiled ahead


def test_calls_use_what_was_compiled_ahead() -> None:
    said: list[str] = []
    ahead = CompileAhead(said.append)
    n_traces = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        n_traces.append(x.shape)
        return 2 * x

    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    ahead.add("doubling", lambda: double.lower(shape))
    call = ahead.before_calls("doubling", double)
    np.testing.assert_array_equal(call(jnp.ones(3)), [2, 2, 2])
    call(jnp.ones(3))
    ahead.close()
    assert n_traces == [(3,)]
    (line,) = said
    assert line.startswith("compiled side by side, seconds: doubling ")


def test_a_call_raises_the_error_of_its_program() -> None:
    said: list[str] = []
    ahead = CompileAhead(said.append)
    names = ("jax_enable_compilation_cache", "jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, name) for name in names}

    @jax.jit
    def broken(x: jax.Array) -> jax.Array:
        raise ValueError("no such program")

    ahead.add("broken", lambda: broken.lower(jax.ShapeDtypeStruct((3,), jnp.float32)))
    try:
        with pytest.raises(ValueError, match="no such program"):
            ahead.before_calls("broken", broken)(jnp.ones(3))
        assert not jax.config.jax_enable_compilation_cache
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        ahead.close()
    assert said == []


def test_lengths_up_to_the_first_evaluation() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "on_cpu", lambda: False)
        c = TrainConfig(max_steps=300, eval_interval=120)
        assert pace.first_lengths(c, 0, 50) == [50, 20]
        assert pace.first_lengths(c, 70, 50) == [50]
        assert pace.first_lengths(c, 290, 50) == [10]
        assert pace.first_lengths(c, 300, 50) == []


def test_both_evaluations_have_one_shape() -> None:
    tokens = np.arange(503, dtype=np.uint16)
    text = texts.TextData(tokens, tokens, tokenizer.ByteTokenizer(), "a test", "")
    train = TrainConfig(batch_size=8, eval_batches=5)
    config = Config(dataclasses.replace(TINY, block_size=8), TextDataConfig(), train=train)
    whole, sampled = (list(f(config, 4)) for f in (text.validation, text.sampled_validation))
    shapes = {group[name].shape for group in whole + sampled for name in group}
    assert len(shapes) == 1
    assert sum(group["loss_weights"].sum() for group in sampled) == 5 * 8 * 8


COUNTS = """
import json, sys
import jax
from gptjax import train
compiled = []
def listen(event, seconds, fun_name="", **_):
    if event.endswith("backend_compile_duration"):
        compiled.append(fun_name)
jax.monitoring.register_event_duration_secs_listener(listen)
train.main(sys.argv[1:])
print(json.dumps(compiled))
"""


@pytest.mark.slow
def test_every_program_of_a_run_compiles_once(tmp_path: Path) -> None:
    """What was compiled ahead is what the run calls; jax's own cache of jitted functions has it."""
    text = tmp_path / "text.txt"
    text.write_text("All the world's a stage, and all the men and women merely players.\n" * 60)
    command = ["-c", COUNTS, "--config", "configs/debug.py"]
    command += ["--data.path", str(text), "--run-dir", str(tmp_path / "run")]
    command += ["--model.n-layer", "1", "--model.n-embd", "16", "--model.block-size", "8"]
    command += ["--train.max-steps", "6", "--train.eval-interval", "6", "--train.eval-batches", "2"]
    command += ["--train.sample-tokens", "20"]  # past block_size: reads a prompt again
    done = forked.run(*command)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout.splitlines()[-1])
    for name in ("sums", "train_steps", "_decode", "_prefill", "all_finite"):
        assert sum(name in one for one in compiled) == 1, (name, compiled)
    assert "compiled side by side, seconds: evaluation" in done.stdout
