"""Walks README, CONTRIBUTING and docs/: runs every command of their fenced blocks, in order.

    python tests/walk_docs.py             # in a fresh clone of HEAD, as a newcomer would
    python tests/walk_docs.py --in CLONE --only docs/pairs.md    # one page, in a clone that is kept

Prints a line per command, and ends with 1 if any failed. Trainings get --train.max-steps; the rest
runs as written. Needs the packages of `make test`. test_walk.py is the quick form.

An HTML comment above a block keeps its commands from running, all or those that begin with TEXT:

    <!-- walk: MARK [TEXT] -->

gpu, docker, cluster: run only where `nvidia-smi`, `docker info`, `sbatch --version` succeeds.
network: fetches recordings; with --offline it trains on some that are made here. long: takes many
minutes, so only with --long. output: no command, but what one prints.
"""

import argparse
import functools
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In the order of the doors of README.md. Those at the end need runs that earlier ones make.
FIRST = ("README", "CONTRIBUTING", "docs/training", "docs/pairs", "docs/speech", "docs/python")
SHELL, PYTHON, DATA = ("", "bash", "sh", "console"), ("python",), ("json", "text")
# What must succeed for the commands of a mark to run. Docker's client alone is not enough.
TOOLS = {"gpu": "nvidia-smi", "docker": "docker info", "cluster": "sbatch --version"}
MARKS = (*TOOLS, "network", "long", "output")
BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^<!-- walk: (\w+) ?(.*?) *-->$", re.MULTILINE)
SECONDS = 1800


@dataclass(frozen=True)
class Command:
    page: str
    text: str
    """A command of a shell, or a program in Python."""
    is_python: bool
    marks: tuple[str, ...]


def pages() -> list[str]:
    others = sorted(f"docs/{path.stem}" for path in ROOT.glob("docs/*.md"))
    return [f"{name}.md" for name in (*FIRST, *(name for name in others if name not in FIRST))]


def commands(page: str) -> Iterator[Command]:
    """The commands of a page, in order. Raises ValueError for an unknown block or mark.

    Blocks of Python without a shell's block in between are one program. Blocks of `>>>` lines are
    for doctest: one command for the whole page.
    """
    program: list[str] = []
    has_session = False
    text = (ROOT / page).read_text("utf-8")
    if len(re.findall(r"^```", text, re.MULTILINE)) % 2:
        raise ValueError(f"{page}: a fenced block does not end")
    for above, language, content in BLOCK.findall(text):
        marks = MARK.findall(above)
        for mark, start in marks:
            if mark not in MARKS or not any(line.startswith(start) for line in content.split("\n")):
                raise ValueError(f"{page}: the mark {mark} {start} is unknown, or for no command")
        if language not in SHELL + PYTHON + DATA:
            raise ValueError(f"{page}: a block in {language}")
        if language in DATA or ("output", "") in marks:
            continue
        if language in PYTHON:
            has_session |= ">>> " in content
            program += [] if ">>> " in content else [content]
            continue
        if program:
            yield Command(page, "\n".join(program), True, ())
            program = []
        for line in re.sub(r"\\\n\s*", "", content).splitlines():
            if bare := re.sub(r"\s+#\s.*", "", line).strip():
                found = tuple(mark for mark, start in marks if line.startswith(start))
                yield Command(page, bare, False, found)
    if program:
        yield Command(page, "\n".join(program), True, ())
    if has_session:
        yield Command(page, f"python -m doctest {page}", False, ())


def shortened(text: str, steps: int) -> str:
    """A command whose training takes a few steps."""
    text = re.sub(r"\bmake train\b", f'make train ARGS="--train.max-steps {steps}"', text)
    call = re.compile(r"(gptjax train|python train\.py|slurm\.sbatch)(?= )")
    return call.sub(rf"\1 --train.max-steps {steps}", text)


def make_files(folder: Path) -> None:
    """What a reader brings: the files that the pages name."""
    import numpy as np
    import soundfile

    text = "Once upon a time there was a text. ROMEO: To be, or not to be?\nThe end.\n" * 60
    for name in ("my.txt", "part1.txt", "part2.txt"):
        (folder / name).write_text(text)
    words = [f"{a}{b}{c}" for a in "bdgklm" for b in "aeiou" for c in "nprst"]
    (folder / "pairs.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in words))
    (folder / "sources.txt").write_text("\n".join(words[:3]) + "\n")
    (folder / "lines.txt").write_text(
        "".join(f"the {word} and the {word[::-1]}\n" for word in words)
    )
    config = (ROOT / "configs/debug.py").read_text().replace("max_steps=200", "max_steps=8")
    (folder / "my_config.py").write_text(config)
    sound = 0.1 * np.sin(np.arange(16000) / 8).astype(np.float32)
    for place, file in (("", "me.wav"), ("folder/19/198", "19-198-0000.flac")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / place / file, sound, 16000)
    (folder / "recordings").mkdir()  # named as those of the Free Spoken Digit Dataset
    for digit, take in itertools.product(range(10), range(24)):
        path = folder / f"recordings/{digit}_ann_{take}.wav"
        soundfile.write(path, sound[: 4000 + 200 * digit], 16000)
    (folder / "folder/19/198/19-198.trans.txt").write_text("19-198-0000 ONE TWO\n")


def make_checkpoints(folder: Path) -> None:
    """GPT-2 and Whisper as Hugging Face has them, but tiny and random."""
    import test_import_gpt2 as gpt2
    import test_importers as whisper
    from hugging_face import save

    for name, module in (("gpt2", gpt2), ("whisper-tiny", whisper)):
        twin = module.make_gpt2() if name == "gpt2" else module.make_whisper()
        save(twin, folder / name, module.make_tokenizer())


class Shell:
    """A bash that keeps variables and the activated environment from command to command."""

    def __init__(self, folder: Path, log: Path):
        self._log = log
        environment = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        reading, self._fd = os.pipe()
        self._done = os.fdopen(reading)
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[self._fd],
            start_new_session=True,
        )

    def run(self, command: str) -> int:
        """The exit code. Waits for what is in the background, unless this starts more there."""
        wait = "" if command.endswith("&") else "wait"
        quoted = shlex.quote(str(self._log))
        tell = f"{{ {command}\n }} > {quoted} 2>&1 < /dev/null; code=$?; {wait}\n"
        tell += f"echo $code >&{self._fd}\n"
        assert self._bash.stdin
        self._bash.stdin.write(tell)
        self._bash.stdin.flush()
        signal.alarm(SECONDS)
        try:
            return int(self._done.readline())
        finally:
            signal.alarm(0)

    def close(self) -> None:
        os.killpg(self._bash.pid, signal.SIGKILL)
        assert self._bash.stdin
        self._bash.stdin.close()
        self._done.close()
        os.close(self._fd)
        self._bash.wait()


@functools.cache
def succeeds(command: str) -> bool:
    try:
        return not subprocess.run(command.split(), capture_output=True).returncode
    except FileNotFoundError:
        return False


def reason_to_skip(command: Command, arguments: argparse.Namespace) -> str:
    for mark in command.marks:
        if mark in TOOLS and not succeeds(TOOLS[mark]):
            return f"{TOOLS[mark]} fails here"
        if mark == "long" and not arguments.long:
            return mark
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="*", choices=pages(), metavar="PAGE")
    parser.add_argument("--in", dest="clone", type=Path, help="a clone that is kept")
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--long", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        clone = (arguments.clone or Path(temporary) / "gptjax").resolve()
        if not clone.exists():
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
            make_files(clone)
            make_checkpoints(clone)
        log = Path(temporary) / "log"
        shell, failed = Shell(clone, log), 0
        if (clone / ".venv/bin/activate").exists():
            shell.run("source .venv/bin/activate")
        for page in arguments.only or pages():
            for command in commands(page):
                if reason := reason_to_skip(command, arguments):
                    print(f"skipped    {page}: {command.text}   ({reason})", flush=True)
                    continue
                text = shortened(command.text, arguments.steps)
                if arguments.offline and "network" in command.marks:
                    text += " --data.path recordings"
                if command.is_python:
                    (Path(temporary) / "program.py").write_text(command.text)
                    text = f"python {shlex.quote(temporary)}/program.py"
                start = time.monotonic()
                code = shell.run(text)
                failed += code != 0
                shown = command.text.replace("\n", "; ")[:150]
                seconds = time.monotonic() - start
                print(
                    f"{'FAILED' if code else 'ok':<6}{seconds:4.0f} s {page}: {shown}", flush=True
                )
                if code:
                    print(log.read_text(errors="replace")[-3000:], flush=True)
        shell.close()
    sys.exit(f"{failed} commands failed" if failed else 0)


if __name__ == "__main__":
    main()
