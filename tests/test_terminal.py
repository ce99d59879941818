"""Training in terminals of several widths."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import TINY_RUN

REPO = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_progress_fits(width: int, text_file: Path, tmp_path: Path) -> None:
    """No line of the progress is wider; step, loss and the time left are always there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [sys.executable, "train.py", *TINY_RUN, "--data.path", str(text_file)]
    command += [
        "--run-dir",
        str(tmp_path / "run"),
        "--train.max-steps",
        "40",
        "--train.eval-interval",
        "40",
    ]
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
    shown = [line for line in re.split(r"[\r\n]+", text) if re.search(r"\d+/40\b", line)]
    assert shown, text
    assert max(map(len, shown)) <= width
    assert any("loss" in line or re.search(r"\d\.\d{2,}", line) for line in shown)
