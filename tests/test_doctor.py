"""gptjax doctor, on this machine and on machines with a known fault."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import Refused

from gptjax.commands import doctor
from gptjax.data import downloads

REPO = Path(__file__).parents[1]
GPU = {"name": "NVIDIA H200", "driver": "570.86.15"}
NEWER_GPU = {**GPU, "driver": "580.65"}
CUDA12, CUDA13 = {"jax-cuda12-plugin": "0.10.2"}, {"jax-cuda13-plugin": "0.10.2"}
CACHE = {"folder": "/x", "writable": True}
HEALTHY: dict[str, Any] = {
    "packages": {"jax": "0.10.2", "jaxlib": "0.10.2"},
    "plugins": CUDA12,
    "environment": {},
    "nvidia": [GPU],
    "backend": "gpu",
    "cache": CACHE,
}


def doctor_prints(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """(exit code, output) of gptjax doctor."""
    with pytest.raises(SystemExit) as stop:
        doctor.main([*argv])
    return int(stop.value.code or 0), capsys.readouterr().out


# --- this machine


@pytest.mark.slow
def test_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The facts are right, as JSON and as text, and hold neither secrets nor the user's name."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "input.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".4")
    monkeypatch.setenv("WANDB_API_KEY", "secret-1")
    code, text = doctor_prints(capsys, "--json")
    facts = json.loads(text)
    assert code == 0, facts["problems"]
    assert facts["packages"]["jax"] == jax.__version__
    assert facts["environment"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".4"
    assert (facts["backend"], facts["dtype"]) == ("cpu", "float32")
    assert facts["devices"].startswith("cpu (")
    assert facts["matmul_gflops"] > 0
    assert facts["gpt_tokens_per_second"] > 0
    assert facts["cache"]["folder"] == "~/cache"
    assert facts["cache"]["datasets"] == ["tinyshakespeare"]
    assert facts["cache"]["free_gb"] > 0
    assert "secret-1" not in text
    assert str(tmp_path) not in text

    for problems in ([], ["jax is broken: install it", "the disk is full: make room"]):
        monkeypatch.setattr(doctor, "examine", lambda p=problems: {**facts, "problems": p})
        code, text = doctor_prints(capsys)
        lines = [re.split(r"  +", line, maxsplit=1) for line in text.splitlines()]
        assert code == (1 if problems else 0)
        assert [name for name, _ in lines[:2]] == ["gptjax", "packages"]
        ends = [["problems", problem] for problem in problems or ["none"]]
        assert lines[-len(ends) :] == ends
        assert f"jax={jax.__version__}  " in text


def test_only_its_own_option(refused: Refused) -> None:
    assert "usage: gptjax doctor [--json]" in refused(doctor.main, "--jsno")


def test_packages_are_the_requirements() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in project["dependencies"]}
    assert set(doctor.PACKAGES) == names | {"jaxlib"}


# --- JAX that cannot start: the other facts are still there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("JAX_PLATFORMS", "cuda", "cannot be used: JAX_PLATFORMS=cuda is not available here"),
        # XLA ends the process for a flag that it does not know.
        ("XLA_FLAGS", "--xla_no_such_flag=1", "Unknown flag in XLA_FLAGS: --xla_no_such_flag=1"),
    ],
)
def test_jax_that_refuses(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    facts, problem = doctor.start_jax()
    assert problem
    assert words in problem
    assert "\n" not in problem
    assert "cache" in facts
    assert "devices" not in facts


@pytest.mark.parametrize(
    ("jax_module", "words"),
    [
        ("import time; time.sleep(60)", "did not start in 1 s"),
        ("raise KeyError('{not JSON')", "cannot be used: KeyError: '{not JSON'"),
        ("import os; os.kill(os.getpid(), 11)", "cannot be used (SIGSEGV): no message"),
    ],
    ids=["hangs", "raises", "dies"],
)
def test_jax_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jax_module: str, words: str
) -> None:
    (tmp_path / "jax.py").write_text(jax_module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if "sleep" in jax_module:
        monkeypatch.setattr(doctor, "TIMEOUT", 1.0)
    assert words in str(doctor.start_jax()[1])


# --- machines with a fault


def test_a_healthy_machine() -> None:
    assert doctor.find_problems(HEALTHY) == []
    found_before_a_crash = ("backend", "cache")
    rest = {name: fact for name, fact in HEALTHY.items() if name not in found_before_a_crash}
    assert doctor.find_problems({**rest, "nvidia": [], "plugins": {}}) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"packages": {"jaxlib": "0.10.2", "flax": None}}, ["flax is missing: pip install"]),
        ({"plugins": {}}, ["no plugin for it", "-e '.[cuda12]'"]),
        ({"plugins": {}, "nvidia": [NEWER_GPU]}, ["no plugin for it", "-e '.[cuda13]'"]),
        ({"nvidia": [], "backend": "cpu"}, ["no NVIDIA driver", "docker run --gpus all"]),
        ({"plugins": CUDA13}, ["driver 570 is too old for cuda13, which needs 580", ".[cuda12]"]),
        ({"plugins": {**CUDA12, **CUDA13}, "nvidia": [NEWER_GPU]}, ["two CUDA versions"]),
        ({"packages": {"jaxlib": "0.10.1"}}, ["jax-cuda12-plugin 0.10.2 with jaxlib 0.10.1"]),
        ({"backend": "cpu"}, ["JAX runs on the CPU: JAX's messages"]),
        ({"backend": "cpu", "environment": {"JAX_PLATFORMS": "cpu"}}, ["JAX_PLATFORMS=cpu is set"]),
        ({"cache": {**CACHE, "writable": False}}, ["the cache /x cannot", "GPTJAX_CACHE"]),
    ],
)
def test_a_fault_is_one_line_with_a_fix(fault: dict[str, Any], words: list[str]) -> None:
    (problem,) = doctor.find_problems({**HEALTHY, **fault})
    assert all(word in problem for word in words), problem
    assert "\n" not in problem


def test_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.find_gpus() == ([], None)
    program = tmp_path / "nvidia-smi"
    program.touch(mode=0o755)
    program.write_text("#!/bin/sh\nprintf 'NVIDIA H200, 580.65.06\\nNVIDIA T4, 580.65.06\\n'\n")
    gpus, problem = doctor.find_gpus()
    assert problem is None
    assert [gpu["name"] for gpu in gpus] == ["NVIDIA H200", "NVIDIA T4"]
    assert gpus[1]["driver"] == "580.65.06"
    words = "Failed to initialize NVML: Driver/library version mismatch"
    program.write_text(f"#!/bin/sh\necho '{words}'; exit 18\n")
    assert doctor.find_gpus() == ([], f"nvidia-smi: {words}")


def test_cached_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path))
    assert downloads.cached() == []
    (tmp_path / "fsdd").mkdir()
    (tmp_path / "cmudict.dict").touch()
    assert downloads.cached() == ["cmudict", "fsdd"]
    monkeypatch.delenv("GPTJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert downloads.cached() == []
    (tmp_path / "home" / "gptjax" / "cmudict").mkdir(parents=True)
    (tmp_path / "home" / "gptjax" / "cmudict" / "cmudict.dict").touch()
    assert downloads.cached() == ["cmudict"]
