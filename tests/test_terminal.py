"""Training in terminals of several widths."""

import os
import pty
import re
from pathlib import Path

import pytest
from forked import Python

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
def test_the_progress_fits(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line of the progress is wider; step, loss and the time left are always there."""
    ours, theirs = pty.openpty()
    command: list[object] = ["-c", TRAIN.replace("WIDTHS", str(WIDTHS)), tmp_path]
    command += ["--config", "configs/bigram.py", "--data.path", text_file, "--train.max-steps", 40]
    command += ["--train.eval-batches", 1, "--train.log-interval", 1, "--train.sample-tokens", 0]
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    child = Python(*command, out=Path(os.ttyname(theirs)))
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
