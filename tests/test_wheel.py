"""The wheel, installed in an environment of its own, outside of the clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gptjax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel, and the packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "configs", source / "configs", ignore=no_caches)
    shutil.copytree(REPO / "gptjax", source / "gptjax", symlinks=True, ignore=no_caches)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build, str(source)], check=True)
    (wheel,) = folder.glob("gptjax-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    # Packages only: the editable gptjax of this environment is a finder, which a .pth does not run.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "env" / "bin" / "python"
    install = ["--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, *install, str(wheel)], check=True)
    return folder / "env" / "bin" / "gptjax"


def test_it_trains_by_name_and_makes_a_page(gptjax: Path, tmp_path: Path, text_file: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: object) -> str:
        words = [str(gptjax), *map(str, command)]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import importlib.util as util; print(util.find_spec('gptjax').origin)"
    python = gptjax.with_name("python")
    found = subprocess.check_output([python, "-c", where], cwd=tmp_path, env=env, text=True)
    assert str(gptjax.parents[1]) in found
    flags = "--train.max-steps 2 --train.eval-batches 1 --train.sample-tokens 5 --model.n-layer 1"
    run("train", "--config", "debug", "--run-dir", "run", "--data.path", text_file, *flags.split())
    assert "page.html" in run("page", "run", "--out", "page.html")
    assert (tmp_path / "page.html").stat().st_size > 50_000
