"""The drills of benchmarks/drills.py, a few cases, and that they would find a fault."""

import json
import os
import random
import time
from pathlib import Path

import forked
import pytest

from benchmarks import drill_children, fuzz

pytestmark = pytest.mark.slow


# Shorter runs than a full drill has, of a bigram.
DRILLS = """
import os, re, sys
from matplotlib.figure import Figure
flags = os.environ["XLA_FLAGS"]
from benchmarks import drills
from gptjax.runs import plots
os.environ["XLA_FLAGS"] = flags  # those of the other tests, which compile faster
plots.Figure = Figure
bigram = re.sub(r"GPTConfig\\(.*\\)", "BigramConfig(16)", drills.CONFIG)
drills.CONFIG = bigram.replace("GPTConfig", "BigramConfig")
drills.MAX_STEPS, drills.HALF = 2, 1
drills.main(sys.argv[1:])
"""


def test_a_few_cases_survive(tmp_path: Path) -> None:
    """In a process of its own, which forks before jax starts a device.

    Only of some drills: test_end_to_end.py has signals, and test_processes.py lost processes.
    """
    flags = ["--scale", 0.003, "--only", "kill,damage,disk,fuzz", "--json"]
    done = forked.run("-c", DRILLS, *flags, tmp_path / "drills.json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "drills.json").read_text())["drills"]
    for name, row in found.items():
        assert row.get("skipped") or row["survived"] == row["tried"] > 0, name
    assert set(found) == {"kill", "damage", "disk", "fuzz"}
    assert set(found["fuzz"]["outcomes"]) == set(fuzz.KINDS)


# Other tests of this process have started a device; the drills fork before they do.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize(
    ("function", "says"),
    [("hang", "no answer"), ("die", "died with -9"), ("grow", "MiB of memory"), ("ok", "")],
)
def test_a_guarded_worker_reports_and_goes_on(tmp_path: Path, function: str, says: str) -> None:
    worker = drill_children.Guarded(worker_case, tmp_path)
    assert says in worker.call(function, 1 if function == "hang" else 60)[2]
    assert worker.call("ok", 30) == (0, "", "")
    worker.close()


def worker_case(case: str) -> tuple[int, str, str]:
    if case == "hang":
        time.sleep(60)
    if case == "die":
        os.kill(os.getpid(), 9)
    if case == "grow":
        bytearray(2200 << 20)
    return 0, "", ""


@pytest.mark.parametrize(
    ("err", "expected"),
    [
        ("error: x is 1\n", True),
        ("run a\nerror: x is 1\n", True),
        ("error: a\nerror: b\n", False),
        ("error: a\nTraceback (most recent call last)\n", False),
        ("", False),
    ],
)
def test_what_counts_as_one_line(err: str, expected: bool) -> None:
    assert drill_children.is_one_line(err) == expected


def test_a_case_can_be_repeated(tmp_path: Path) -> None:
    good = json.dumps({"a": [1, {"b": "x"}]}).encode()
    first, again = (fuzz._mutated_json(good, random.Random("kind 7")) for _ in range(2))
    assert first == again
    assert len({fuzz._mutated_json(good, random.Random(i)) for i in range(50)}) > 30
