"""The doctor looks at this machine, and at ones that are ill in a known way."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import Refused

from gptjax import models
from gptjax.command_line import load_file
from gptjax.commands import doctor
from gptjax.data import datasets
from gptjax.scale import devices

REPO = Path(__file__).parents[1]
WELL: dict[str, Any] = {
    "packages": {"jax": "0.10.2", "jaxlib": "0.10.2"},
    "plugins": {"jax-cuda12-plugin": "0.10.2"},
    "environment": {},
    "gpus": [{"name": "NVIDIA H200", "driver": "570.86.15", "capability": "9.0"}],
    "backend": "gpu",
    "modules": {"jax": None},
    "extras": {"bpe": {"tiktoken": None, "tokenizers": None}},
    "cache": {"folder": "/data/cache", "bytes": 0, "datasets": [], "writable": True},
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the doctor prints as JSON for this machine, in an environment that is known."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "cache").mkdir()
    (folder / "cache" / "input.txt").write_text("x" * 2_000_000)
    known = {"HOME": str(folder), "GPTJAX_CACHE": str(folder / "cache")}
    known |= {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".4", "WANDB_API_KEY": "secret-1"}
    done = subprocess.run(
        [sys.executable, "-m", "gptjax.commands.doctor", "--json"],
        cwd=REPO,
        env=os.environ | known,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "secret-1" not in done.stdout
    assert str(folder) not in done.stdout  # it names no user
    return json.loads(done.stdout)


def module(folder: Path, name: str, content: str) -> str:
    """A folder for PYTHONPATH with a module that takes the place of a package."""
    (folder / f"{name}.py").write_text(content)
    return str(folder)


# --- this machine


def test_facts(facts: dict[str, Any]) -> None:
    assert facts["problems"] == []
    assert facts["packages"]["jax"] == jax.__version__
    assert facts["backend"] == "cpu"
    assert facts["dtype"] == "float32"
    assert facts["modules"] == dict.fromkeys(doctor.MODULES)
    assert facts["extras"]["bpe"] == {"tiktoken": None, "tokenizers": None}
    assert "wandb" not in facts["extras"]  # not installed, which is no problem
    assert facts["cache"]["folder"] == "~/cache"
    assert facts["cache"]["bytes"] == 2_000_000
    assert facts["cache"]["datasets"] == ["tinyshakespeare"]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < facts["host_memory"]["available"] < facts["host_memory"]["total"] <= total
    # Every configuration with a Transformer.
    names = {path.stem for path in REPO.glob("configs/*.py")}
    assert set(facts["configs"]) == names - {"bigram"}
    for of in facts["configs"].values():
        speed = devices.training_speed(of["parameters"], facts["matmul_rate"])
        assert of["tokens_per_second"] == pytest.approx(speed, abs=1)
    seed = facts["configs"]["gpt"]
    assert seed["query_chunks"] == len(devices.query_chunks(256))
    config = load_file(REPO / "configs" / "gpt.py")
    assert seed["micro_batch_size"] == devices.micro_batch_size(config.train, config.model, 256)
    model = models.build(config.model, doctor.VOCAB_SIZE)
    assert seed["parameters"] == models.count(jax.eval_shape(lambda: models.init(model, 0)))


def test_text(
    facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same, a line each, and what is wrong at the end; the exit code says whether."""
    ill = ["jax is ill: cure it", "optax is, too: cure it"]
    for problems, code in (([], 0), (ill, 1)):
        monkeypatch.setattr(doctor, "examine", lambda p=problems: {**facts, "problems": p})
        with pytest.raises(SystemExit) as stop:
            doctor.main([])
        assert stop.value.code == code
        printed = capsys.readouterr().out
        lines = [re.split(r"  +", line, maxsplit=1) for line in printed.splitlines()]
        ends = [["problem", problem] for problem in problems] or [["problems", "none found"]]
        assert lines[-len(ends) :] == ends
        text = dict(lines)
        assert f"jax {jax.__version__}  " in text["packages"]
        assert text["preallocation"] == "XLA_PYTHON_CLIENT_MEM_FRACTION=.4"
        assert "GPTJAX_CACHE=~/cache" in text["environment"]
        assert text["cache"] == "~/cache  2.0 MB  tinyshakespeare"
        assert "bpe" in text["extras"]
        assert "wandb" not in text["extras"]
        assert text["gpt"].startswith("10,788,929 parameters, micro-batches of ")


def test_facts_that_are_missing(facts: dict[str, Any]) -> None:
    """Whatever children did not live to tell."""
    told = ("modules", "extras", "cache", "devices", "backend", "dtype", "matmul_rate", "configs")
    rest = {name: fact for name, fact in facts.items() if name not in told}
    assert doctor.hints(rest) == []
    assert "extras          none" in doctor.describe(rest)


def test_only_its_own_option(refused: Refused) -> None:
    assert "usage: python -m gptjax.commands.doctor [--json]" in refused(doctor.main, "--jsno")


def test_it_knows_all_requirements() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]

    def modules(requirements: list[str]) -> set[str]:
        names = {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}
        return {name.replace("orbax-", "orbax.").replace("-", "_") for name in names}

    assert set(doctor.MODULES) == modules(project["dependencies"])
    extras = project["optional-dependencies"]
    del extras["test"]
    # What JAX itself takes for a device or a cluster is no module of its own.
    extras = {name: needs for name, needs in extras.items() if not needs[0].startswith("jax[")}
    assert {name: set(names) for name, names in doctor.EXTRAS.items()} == {
        name: modules(requirements) for name, requirements in extras.items()
    }


# --- what is broken is named in a line, and the rest is told all the same


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("JAX_PLATFORMS", "cuda", "find_devices: JAX_PLATFORMS=cuda is not available here"),
        # XLA ends the process for a flag that it does not know.
        ("XLA_FLAGS", "--xla_no_such_flag=1", "Unknown flag in XLA_FLAGS: --xla_no_such_flag=1"),
    ],
)
def test_jax_that_cannot_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    found, failure = doctor._in_child(doctor.find_devices)
    assert failure
    assert words in failure
    assert "\n" not in failure
    assert "devices" not in found


def test_a_device_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 1.0)
    monkeypatch.setenv("PYTHONPATH", module(tmp_path, "jax", "import time\ntime.sleep(60)"))
    found, failure = doctor._in_child(doctor.find_devices)
    assert failure == "find_devices hangs; gave up after 1 s"
    assert "devices" not in found


def test_packages_that_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = "raise OSError('libsndfile.so: cannot open\\nshared object file')"
    module(tmp_path, "soundfile", library)
    module(tmp_path, "optax", "print('{not JSON'); print('[1]'); raise KeyError(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "EXTRAS", {"speech": ("soundfile", "soxr")})
    found = {**WELL}
    for probe in (doctor.find_modules, doctor.find_extras):
        facts, failure = doctor._in_child(probe)
        assert failure is None
        found |= facts
    assert found["modules"]["jax"] is None
    said = "\n".join(doctor.hints(found))
    assert "optax cannot be imported (KeyError: 1)" in said
    error = "OSError: libsndfile.so: cannot open shared object file"
    assert f"soundfile, of the extra speech, is installed but broken ({error})" in said


def test_a_package_that_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before it is kept."""
    monkeypatch.setenv(
        "PYTHONPATH", module(tmp_path, "jiwer", "import os\nos.kill(os.getpid(), 11)")
    )
    found, failure = doctor._in_child(doctor.find_extras)
    assert failure == "find_extras dies of SIGSEGV: no message"
    assert found["extras"]["bpe"] == {"tiktoken": None, "tokenizers": None}
    assert "evaluate" not in found["extras"]


# --- machines with a GPU


def test_a_machine_that_is_well() -> None:
    assert doctor.hints(WELL) == []


@pytest.mark.parametrize(
    ("ill", "words"),
    [
        ({"plugins": {}}, ["no plugin for it", "-e '.[cuda12]'"]),
        ({"gpus": [], "backend": "cpu"}, ["no NVIDIA driver", "docker run --gpus all"]),
        (
            {"plugins": {"jax-cuda13-plugin": "0.10.2"}},
            ["driver 570.86.15 is too old for cuda13, which needs 580", "-e '.[cuda12]'"],
        ),
        (
            {"packages": {"jax": "0.10.1", "jaxlib": "0.10.1"}},
            ["jax-cuda12-plugin 0.10.2 with jaxlib 0.10.1"],
        ),
        (
            {"gpus": [{"name": "Quadro", "driver": "570.1", "capability": "5.0"}]},
            ["Quadro has compute capability 5.0, but cuda12 needs 5.2"],
        ),
        ({"backend": "cpu"}, ["JAX runs on the CPU: its messages"]),
        (
            {"backend": "cpu", "environment": {"JAX_PLATFORMS": "cpu"}},
            ["JAX runs on the CPU: JAX_PLATFORMS=cpu says so"],
        ),
        (
            {"cache": {**WELL["cache"], "writable": False}},
            ["the cache /data/cache cannot be written", "GPTJAX_CACHE"],
        ),
    ],
)
def test_a_machine_that_is_ill(ill: dict[str, Any], words: list[str]) -> None:
    (hint,) = doctor.hints({**WELL, **ill})
    assert all(word in hint for word in words), hint
    assert "\n" not in hint


def test_cuda_13_is_proposed_where_the_driver_can() -> None:
    gpus = [{"name": "NVIDIA H200", "driver": "580.65.06", "capability": "9.0"}]
    (hint,) = doctor.hints({**WELL, "plugins": {}, "gpus": gpus, "backend": "cpu"})
    assert "-e '.[cuda13]'" in hint


def test_two_plugins() -> None:
    plugins = {"jax-cuda12-plugin": "0.10.2", "jax-cuda13-plugin": "0.10.2"}
    gpus = [{"name": "NVIDIA H200", "driver": "580.65.06", "capability": "[N/A]"}]
    (hint,) = doctor.hints({**WELL, "plugins": plugins, "gpus": gpus})
    assert "two CUDA versions" in hint


def fake_nvidia_smi(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return str(folder)


def test_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "NVIDIA H200, 580.65.06, 9.0\\nNVIDIA T4, 580.65.06, 7.5\\n"
    works = fake_nvidia_smi(tmp_path / "works", f"printf '{rows}'")
    monkeypatch.setenv("PATH", works)
    gpus, failure = doctor._nvidia()
    assert failure is None
    assert [gpu["name"] for gpu in gpus] == ["NVIDIA H200", "NVIDIA T4"]
    assert gpus[1]["capability"] == "7.5"
    words = "Failed to initialize NVML: Driver/library version mismatch"
    fails = fake_nvidia_smi(tmp_path / "fails", f"echo '{words}'; exit 18")
    monkeypatch.setenv("PATH", fails)
    assert doctor._nvidia() == ([], f"nvidia-smi: {words}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._nvidia() == ([], None)


def test_cached_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path))
    assert datasets.cached() == []
    (tmp_path / "fsdd").mkdir()
    (tmp_path / "cmudict.dict").touch()
    assert datasets.cached() == ["cmudict", "fsdd"]
    monkeypatch.delenv("GPTJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert datasets.cached() == []
    (tmp_path / "home" / "gptjax" / "cmudict").mkdir(parents=True)
    (tmp_path / "home" / "gptjax" / "cmudict" / "cmudict.dict").touch()
    assert datasets.cached() == ["cmudict"]
