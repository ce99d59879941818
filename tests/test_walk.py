"""The quick form of walk_docs.py: the blocks of all pages, and the commands that take seconds.

test_docs.py checks the options of every command. Here those run, as written, that need no more than
one tiny model on text; it stands for the runs that the pages train.
"""

import os
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import walk_docs

from benchmarks import compare
from gptjax import cli, train

PROGRAMS = ("docker", "gptjax", "kubectl", "make", "mkdir", "pip", "python", "sbatch", "source")
RUNS = ("gpt_cpu", "mine", "small")  # of the pages in QUICK
QUICK = ("README.md", "docs/training.md", "docs/interop.md")


def test_every_command_has_a_program_that_a_reader_has():
    for page in walk_docs.pages():
        for command in walk_docs.commands(page):
            if not command.is_python:
                first = command.text.split()[0]
                assert first in (*PROGRAMS, "$run") or "=" in first, f"{page}: {command.text}"


class Checked(BaseException):
    """A comparison would begin to measure."""


def test_the_comparisons_have_these_options(monkeypatch):
    pytest.importorskip("torch", reason="an extra: pip install -e '.[torch]'")

    def stop(name: str) -> None:
        raise Checked

    monkeypatch.chdir(walk_docs.ROOT)
    monkeypatch.setattr(compare.importlib, "import_module", stop)
    found = [c.text.split() for c in walk_docs.commands("docs/benchmarks.md")]
    found = [words[3:] for words in found if words[:3] == ["python", "-m", "benchmarks.compare"]]
    assert len(found) == 5
    for words in found:
        with pytest.raises(Checked):
            compare.main(words)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<!-- walk: gpus -->\n```\nls\n```\n", "gpus"),
        ("<!-- walk: gpu gptjax -->\n```\nls\n```\n", "gpu gptjax"),
        ("```yaml\na: 1\n```\n", "yaml"),
        ("```\nls\n", "does not end"),
    ],
)
def test_a_block_or_a_mark_that_the_walk_does_not_know(page, words, tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(page)
    monkeypatch.setattr(walk_docs, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=words):
        list(walk_docs.commands("page.md"))


def test_what_a_page_says_is_what_runs(tmp_path, monkeypatch):
    page = "<!-- walk: long make test -->\n```\nmake train   # quick\nmake test\n"
    page += 'run="gptjax train -a \\\n'
    page += ' -b"\n```\n```python\nx = 1\n```\nAnd:\n```python\nx + 1\n```\n<!-- walk: output -->\n'
    page += "```\nsaid\n```\n```python\n>>> 1\n1\n\n```\n"
    (tmp_path / "page.md").write_text(page)
    monkeypatch.setattr(walk_docs, "ROOT", tmp_path)
    found = list(walk_docs.commands("page.md"))
    assert [(walk_docs.shortened(c.text, 5), c.marks) for c in found] == [
        ('make train ARGS="--train.max-steps 5"', ()),
        ("make test", ("long",)),
        ('run="gptjax train --train.max-steps 5 -a -b"', ()),
        ("x = 1\n\nx + 1\n", ()),
        ("python -m doctest page.md", ()),
    ]
    assert [c.is_python for c in found] == [False, False, False, True, False]


def test_the_shell_keeps_variables_and_tells_failures(tmp_path):
    shell = walk_docs.Shell(tmp_path, tmp_path / "log")
    assert shell.run('said="two words"') == 0
    assert shell.run("echo $said; exit_code() { return 3; }; exit_code") == 3
    assert (tmp_path / "log").read_text() == "two words\n"
    assert shell.run("(sleep 0.2; touch made) &") == 0
    assert not (tmp_path / "made").exists()
    assert shell.run("true") == 0
    assert (tmp_path / "made").exists()
    shell.close()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: configs, files, and runs with a tiny model."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "sample.py", "train.py"):
        (folder / name).symlink_to(walk_docs.ROOT / name)
    walk_docs.make_files(folder)
    flags = "--model.n-layer 1 --model.n-embd 96 --model.dropout 0 --train.max-steps 4"
    flags += " --train.batch-size 4 --train.eval-batches 1 --train.sample-tokens 0"
    flags = ["--config", "debug", "--data.path", str(folder / "my.txt"), *flags.split()]
    train.main([*flags, "--run-dir", str(folder / "runs" / RUNS[0])])
    for name in RUNS[1:]:
        shutil.copytree(folder / "runs" / RUNS[0], folder / "runs" / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", QUICK)
def test_the_quick_commands_of_a_page_run(page, clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    n_run = 0
    for command in walk_docs.commands(page):
        if command.is_python:
            if "transformers" not in command.text:
                (clone / "program.py").write_text(command.text)
                runpy.run_path("program.py")
                n_run += 1
            continue
        words = shlex.split(command.text)
        if words[:2] == ["python", "sample.py"]:
            words[:2] = ["gptjax", "sample"]
        if words[0] != "gptjax" or words[1] in ("train", "import") or "runs/gpt2" in words:
            continue
        print(command.text)  # of a test that fails
        with open(os.devnull) as nothing:
            monkeypatch.setattr("sys.stdin", nothing)
            cli.main(words[1:])
        n_run += 1
    assert n_run >= 3


@pytest.mark.slow
def test_the_page_about_python_runs(clone, monkeypatch):
    """Up to the other kinds of models."""
    monkeypatch.chdir(clone)
    (program,) = walk_docs.commands("docs/python.md")
    start, end, _ = program.text.partition('gptjax.load("runs/g2p_cpu")')
    assert end
    (clone / "program.py").write_text(start)
    assert runpy.run_path("program.py")["logits_BTV"].shape == (1, 5, 28)
