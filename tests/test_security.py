"""SECURITY.md: a run directory and a Hugging Face folder that try to run code are data."""

import ast
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RUN, Refused

from benchmarks import fuzz
from gptjax import train
from gptjax.commands import evaluate, export, import_model, plot, quantize, sample
from gptjax.quantization import card

REPO = Path(__file__).parents[1]
MODULES = sorted(REPO.glob("gptjax/**/*.py"))


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A path that exists once data was executed."""
    return tmp_path / "canary"


@pytest.fixture
def run(text_run: Path, tmp_path: Path, canary: Path) -> Path:
    """A run directory with pickles and Python wherever some program might look for them."""
    folder = tmp_path / "run"
    shutil.copytree(text_run, folder)
    bomb = pickle.dumps(Bomb(canary))
    code = f"import os\nos.mkdir({str(canary)!r})\n"
    steps = [path for path in (folder / "checkpoints").iterdir() if path.is_dir()]
    for place in (folder, *steps, *(step / "params" for step in steps)):
        for name in ("pytorch_model.bin", "state.pkl", "model.npy", "aggregate"):
            (place / name).write_bytes(bomb)
        for name in ("config.py", "conftest.py", "__init__.py", "sitecustomize.py", "setup.py"):
            (place / name).write_text(code)
    return folder


def test_a_bomb_works(canary: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()


@pytest.mark.slow
def test_nothing_in_a_run_directory_is_executed(
    run: Path, canary: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The card of one format, without speeds.
    monkeypatch.setattr(card, "FORMATS", {name: card.FORMATS[name] for name in ("float32", "int8")})
    monkeypatch.setattr(card, "decoding_rates", lambda decoders: dict.fromkeys(decoders, 1.0))
    sample.main([str(run), "--max-new-tokens", "4", "--greedy"])
    evaluate.main([str(run)])
    plot.main([str(run), "--out", str(tmp_path / "a.png")])
    export.main([str(run), "--to", "safetensors", "--out", str(tmp_path / "exported")])
    quantize.main([str(run), "--out", str(tmp_path / "quantized")])
    line = [*TINY_RUN, "--data.path", str(text_file), "--run-dir", str(run)]
    train.main([*line, "--train.max-steps", "6"])
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"type": "os.mkdir", "path": "CANARY"},
        {"type": "Config", "model": {"type": "__import__('os').mkdir('CANARY')"}},
        {"type": "Config", "model": {"py/reduce": [{"py/type": "os.mkdir"}, ["CANARY"]]}},
        {"type": "char", "characters": {"__reduce__": "os.mkdir", "args": ["CANARY"]}},
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_that_names_code_is_refused(
    run: Path, canary: Path, refused: Refused, name: str, content: dict
) -> None:
    (run / name).write_text(json.dumps(content).replace("CANARY", str(canary)))
    assert name in refused(sample.main, run)
    assert not canary.exists()


@pytest.fixture
def hugging_face(tmp_path: Path, canary: Path) -> Path:
    """A GPT-2 that can be imported, and that asks to run its own code."""
    pytest.importorskip("safetensors", reason="an extra: pip install -e '.[import]'")
    pytest.importorskip("tokenizers", reason="an extra: pip install -e '.[import]'")
    folder = tmp_path / "hf"
    fuzz._hugging_face(folder)
    theirs = json.loads((folder / "config.json").read_text())
    theirs["auto_map"] = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    theirs["trust_remote_code"] = True
    (folder / "config.json").write_text(json.dumps(theirs))
    for name in ("modeling.py", "tokenization.py", "__init__.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(canary)))
    return folder


def test_no_code_of_a_hugging_face_folder_runs(
    hugging_face: Path, canary: Path, tmp_path: Path
) -> None:
    import_model.main(["gpt2", str(hugging_face), "--out", str(tmp_path / "imported")])
    sample.main([str(tmp_path / "imported"), "--max-new-tokens", "4", "--greedy"])
    assert not canary.exists()


def test_pickled_weights_are_refused(
    hugging_face: Path, canary: Path, tmp_path: Path, refused: Refused
) -> None:
    (hugging_face / "model.safetensors").unlink()
    line = refused(import_model.main, "gpt2", hugging_face, "--out", tmp_path / "imported")
    assert "pickled weights" in line
    (hugging_face / "model.safetensors").write_bytes(pickle.dumps(Bomb(canary)))
    assert "cannot be read" in refused(
        import_model.main, "gpt2", hugging_face, "--out", tmp_path / "imported"
    )
    assert not canary.exists()
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "a/../../x"])
def test_an_index_names_no_file_outside_its_folder(
    hugging_face: Path, tmp_path: Path, refused: Refused, name: str
) -> None:
    (hugging_face / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"wte.weight": name}}
    (hugging_face / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused(import_model.main, "gpt2", hugging_face, "--out", tmp_path / "imported")
    assert str(hugging_face) in line
    assert not (tmp_path / "imported").exists()


def test_no_module_can_execute_data() -> None:
    """Of modules that can, none is imported; the one exec is that of a config file."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                bad = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "code", "joblib"}
                found += [(path.name, n) for n in names if n.partition(".")[0] in bad]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                bad = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
                is_shell = any(k.arg in ("shell", "allow_pickle") for k in node.keywords)
                if called in bad or is_shell or called.endswith(".exec_module"):
                    found.append((path.name, called))
    assert found == [("config_files.py", "spec.loader.exec_module")]


NO_PORT = """
import sys
opened = []
def hook(event, arguments):
    if event in ("socket.bind", "socket.connect", "socket.getaddrinfo"):
        opened.append((event, arguments))
sys.addaudithook(hook)
from gptjax import train
from gptjax.commands import sample
train.main(sys.argv[2:])
sample.main([sys.argv[1], "--max-new-tokens", "4"])
print(opened, file=sys.stderr)
inodes = set()
import os
for fd in os.listdir("/proc/self/fd"):
    try:
        inodes.add(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        pass
assert not opened, opened
assert not [inode for inode in inodes if inode.startswith("socket:")], inodes
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_one_process_opens_no_connection_and_no_port(tmp_path: Path, text_file: Path) -> None:
    run = str(tmp_path / "run")
    line = [*TINY_RUN, "--data.path", str(text_file), "--run-dir", run]
    done = subprocess.run(
        [sys.executable, "-c", NO_PORT, run, *line],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_run_directory_with_links_writes_nothing_outside(
    run: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared names that training opens to write, and folders that it cleans up."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.orbax-checkpoint-tmp").mkdir()
    victim = outside / "profile"
    victim.write_text("export PATH\n")
    line = [*TINY_RUN, "--data.path", str(text_file), "--run-dir"]
    files = ("config.json", "metrics.jsonl", "tokenizer.json", "environment.json", "loss.png")
    replaced = ("loss.png", "samples/6.txt", *(f"{name}.part" for name in files))
    refuses = [("lock",), ("metrics.jsonl",), ("checkpoints",), ("samples",)]
    for i, names in enumerate((replaced, *refuses)):
        folder = tmp_path / f"linked-{i}"
        shutil.copytree(run, folder)
        for name in names:
            link = folder / name
            if link.is_dir():
                shutil.rmtree(link)
            link.unlink(missing_ok=True)
            link.symlink_to(outside if name in ("checkpoints", "samples") else victim)
        # Refusing is as good as not following, but where many are linked it would hide the rest.
        with contextlib.suppress(*[SystemExit] * (len(names) == 1)):
            train.main([*line, str(folder), "--train.max-steps", "6"])
        assert victim.read_text() == "export PATH\n", names
        left = sorted(path.name for path in outside.iterdir())
        assert left == ["1.orbax-checkpoint-tmp", "profile"], names
    assert "Traceback" not in capsys.readouterr().err
