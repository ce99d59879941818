"""Training in terminals of several widths."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_RUN

REPO = Path(__file__).parents[1]
WIDTHS = (40, 80)
# Trains in terminals of these widths, one after the other, each of which first prints its width.
TRAIN = """
import fcntl, struct, sys, termios
from gptjax import train
folder, *options = sys.argv[1:]
for width in WIDTHS:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    print(f"\\nwidth {width}", flush=True)
    train.main([*options, "--run-dir", f"{folder}/run-{width}"])
"""


@pytest.mark.slow
def test_the_progress_fits(text_file: Path, tmp_path: Path) -> None:
    """No line of the progress is wider; step, loss and the time left are always there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", TRAIN.replace("WIDTHS", str(WIDTHS)), str(tmp_path)]
    command += [*TINY_RUN, "--data.path", str(text_file), "--train.sample-tokens", "0"]
    command += ["--train.max-steps", "40", "--train.eval-interval", "40"]
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    env["TERM"] = "xterm-256color"
    child = subprocess.Popen(command, cwd=REPO, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    content = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        content += part
    os.close(ours)
    assert child.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content.decode())
    parts = re.split(r"^width (\d+)", text, flags=re.MULTILINE)[1:]
    assert tuple(map(int, parts[::2])) == WIDTHS, text
    for width, part in zip(WIDTHS, parts[1::2], strict=True):
        shown = [line for line in re.split(r"[\r\n]+", part) if re.search(r"\d+/40\b", line)]
        assert shown, part
        assert max(map(len, shown)) <= width
        assert any("loss" in line or re.search(r"\d\.\d{2,}", line) for line in shown)
