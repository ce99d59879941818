"""benchmarks/gpu.py: its parts, their limits, and the tables of what it measured."""

import itertools
import json
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_tables, h100, records, rounds, speakers, sweep
from gptjax import command_line, train
from gptjax.data import dataset

ENVIRONMENT = {
    "device": "1 x NVIDIA H100 80GB HBM3",
    "backend": "gpu",
    "cpus": 16,
    "processor": "a processor",
    "packages": {"jax": "0.11.2", "torch": "2.11.0"},
    "python": "3.12.3",
    "date": "2030-01-02",
    "commit": "abc1234",
}

# A model of one layer without what makes it good, cheap to compile.
ONE_LAYER = "--model.n-layer 1 --model.n-encoder-layer 1 --model.n-embd 16 --model.n-head 1 "
ONE_LAYER += "--model.position learned --model.no-qk-norm --model.short-conv 0 "
ONE_LAYER += "--model.activation relu --model.logit-softcap 0 --optim.name adamw "

# A competitor that answers every request; its argument says how long it takes to get ready.
ANSWERS = """
import json, sys, time
spec = json.loads(sys.argv[1])
time.sleep(spec["ready_after"])
print(json.dumps({"first": 2.5, "second": 0.5, "warm_up": 1, "quantum": 1}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 0.25, "rate": 1e9, "peak_bytes": 5}), flush=True)
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "answers"


@pytest.mark.slow
def test_competitors_start_at_once(answers: str) -> None:
    start = time.perf_counter()
    specs = [{"name": str(i), "ready_after": 2} for i in range(4)]
    rows = rounds.race(answers, specs, rounds=3, together=True)
    assert time.perf_counter() - start < 8  # one after the other: more than that
    for row in rows:
        assert row["seconds_per_unit"] == [0.25 / row["units_per_turn"]] * 3
        assert row["compile_seconds"] == 2


@pytest.mark.slow
def test_what_is_late_keeps_its_row_and_delays_no_one(answers: str) -> None:
    start = time.perf_counter()
    specs = [{"name": "good", "ready_after": 0}, {"name": "late", "ready_after": 60}]
    good, late = rounds.race(answers, specs, 2, together=True, deadline=start + 4)
    assert time.perf_counter() - start < 40
    assert late["error"] == rounds.NOT_IN_TIME
    # Its rounds were left out: the deadline had passed.
    assert good["error"] == rounds.NOT_IN_TIME or len(good["seconds_per_unit"]) == 2


def save(folder: Path, name: str, **record: object) -> None:
    text = json.dumps(record | {"environment": ENVIRONMENT, "command": "python -m benchmarks.gpu"})
    (folder / f"{name}.json").write_text(text)


def row(name: str, seconds: float) -> dict:
    return {
        "name": name,
        "seconds_per_unit": [seconds] * 3,
        "median": seconds,
        "least": seconds,
        "most": seconds,
        "matmul_rate": 5e14,
        "compile_seconds": 20.0,
        "peak_bytes": 1 << 30,
    }


def test_tables_show_the_parts_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    assert gpu_tables.section() == []
    start = {"first_evaluation": 9.04, "first_training_steps": 12.06}
    save(tmp_path, "gpu-startup", cold=start, warm={"first_evaluation": 3.11})
    save(
        tmp_path,
        "gpu-fast",
        target=1.4994,
        ms_per_step=5.0,
        passed={"step": 220, "seconds_with_evaluations": 20.0},
        losses=[[200, 10.0, 1.51], [220, 20.0, 1.49], [240, 21.0, 1.4512]],
        complete=True,
    )
    runs = [{"seed": 1, "complete": False, "losses": [[250, 1.5], [500, 1.44], [750, 1.46]]}]
    save(tmp_path, "gpu-best", runs=[*runs, {"seed": 2, "complete": False, "losses": []}])
    text = "\n".join(gpu_tables.section())
    assert "| nothing cached | 9.0 s | 12.1 s |" in text
    assert "| compilation cache filled | 3.1 s |  |" in text
    assert (
        "at most 1.4994 at step 220, after 1.1 s of steps; the lowest was 1.4512 at step 240"
        in text
    )
    assert "| 1 | 1.4400 at 500 | 1.4600 at 750 (stopped there) |" in text
    assert "NVIDIA H100 80GB HBM3, jax 0.11.2, torch 2.11.0, Python 3.12.3, 2030-01-02" in text
    assert "commit abc1234" in text


@pytest.mark.parametrize(
    ("ours", "words"), [(5e-3, "1.20x and 1.20x as fast there"), (7e-3, "slower than PyTorch")]
)
def test_the_verdict_is_that_of_the_newest_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: float, words: str
) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    races = [
        {"dropout": dropout, "rows": [row("gptjax bfloat16", ours), row("PyTorch, tuned", 6e-3)]}
        for dropout in (0.2, 0.0)
    ]
    save(tmp_path, "race-gpt-gpu", races=races)
    assert words in h100.verdict()
    assert f"takes gptjax {1e3 * ours:.2f} ms and PyTorch at its best 6.00 ms" in h100.verdict()


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--out", str(tmp_path / "out"), "--only", "race,rase"])
    assert stop.value.code == 2
    assert "--only rase; the parts are race, startup" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_that_does_not_fit_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    parts = {
        "long": gpu.Part(lambda session: ran.append("long"), 300, 200),
        "breaks": gpu.Part(lambda session: 1 / 0, 30, 1),
        "short": gpu.Part(lambda session: ran.append("short"), 30, 1),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(rounds, "SECONDS_PER_TURN", rounds.SECONDS_PER_TURN)
    gpu.main(["--out", str(tmp_path), "--only", "long,breaks,short", "--seconds", "100"])
    assert ran == ["short"]
    printed = capsys.readouterr().out
    assert "long: left out" in printed
    assert "breaks failed: ZeroDivisionError" in printed


@pytest.mark.slow
def test_the_start_is_measured_at_tiny_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "input.txt"
    text.write_text("All the world's a stage, and all the men and women merely players.\n" * 60)
    monkeypatch.setattr(gpu.downloads, "fetch", lambda name: text)
    session = gpu.Session(tmp_path, 300, tiny=True)
    try:
        options = "--train.max-steps 2 --train.log-interval 1 --train.eval-batches 0 "
        options += f"--train.sample-tokens 0 --model.dropout 0 --data.path {text}"
        options = options.split()
        monkeypatch.setattr(gpu, "TINY_TRAIN", gpu.TINY_TRAIN + options)
        gpu.measure_startup(session)
    finally:
        session.close()
    record = json.loads((tmp_path / "gpu-startup.json").read_text())
    for name in ("cold", "warm"):
        of = record[name]
        assert 0 < of["first_evaluation"] <= of["first_training_steps"] <= of["end"]
        assert any("compiled side by side" in line for _, line in of["output"])


@pytest.mark.slow
def test_variations_are_trained_and_evaluated_on_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 1500)
    base = f"--config configs/bigram.py --data.path {text} --train.max-steps 40"
    base += " --model.block-size 32"
    variations = (
        sweep.Variation("base"),
        sweep.Variation(
            "longer windows, short ones first",
            "--model.block-size 64",
            windows=((0.5, 16, 4), (0.5, 64, 4)),
            noise=0.1,
        ),
    )
    monkeypatch.setattr(sweep, "SWEEPS", {"10min": sweep.Sweep("tiny", base, variations, 2)})
    runs = []
    for variation in variations:
        found = sweep.measure(sweep.SWEEPS["10min"], variation)
        assert max(found["val_loss"]) < np.log(26)
        # The mean of probabilities is at least as good as the mean model (Jensen).
        assert found["together"] < np.mean(found["val_loss"])
        runs.append({"sweep": "10min", "name": variation.name, "options": "", **found})
    config, _ = command_line.parse(base.split())
    tokens, targets = sweep.groups(np.arange(10_000), config)
    assert tokens.shape == targets.shape == (2, 4096 // config.model.block_size, 32)
    assert (tokens.ravel() == np.arange(8192)).all()
    assert (targets.ravel() == np.arange(1, 8193)).all()
    lines = sweep.tables({"runs": runs})
    assert lines[0] == "### tiny"
    sweep.plot({"runs": runs}, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


@pytest.mark.slow
def test_speakers_are_left_out_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = Path(__file__).parents[2] / "shared/speech/fsdd/recordings"
    if not recordings.is_dir():
        pytest.skip(f"{recordings} is not there")
    takes = (0, 7, 30)  # of the test, the validation and the training split
    for speaker, digit, take in itertools.product(("lucas", "theo"), range(10), takes):
        name = f"{digit}_{speaker}_{take}.wav"
        (tmp_path / name).symlink_to(recordings / name)
    monkeypatch.setenv("FSDD", str(tmp_path))
    small = f"{ONE_LAYER} --train.batch-size 2 --train.max-steps 3 --data.extra-clips 0"
    monkeypatch.setattr(speakers, "BASE", f"{speakers.BASE} {small}")
    variations = {
        "untold": speakers.Variation(head="off"),
        "dropout": speakers.Variation(model="--model.dropout 0.1"),
    }
    monkeypatch.setattr(speakers, "VARIATIONS", variations)
    monkeypatch.setattr(speakers, "SPEAKERS", ("lucas", "theo"))
    monkeypatch.setattr(speakers, "SEEDS", (1,))
    monkeypatch.setattr(speakers, "TEST_ROWS", 10)  # one shape to compile for
    monkeypatch.setattr(speakers, "batches", _batches)
    monkeypatch.setattr(rounds, "UNTUNED", {})  # the flags of the suite stay
    speakers.main(["--json", str(tmp_path / "speakers.json")])
    runs = json.loads((tmp_path / "speakers.json").read_text())["runs"]
    about = [(run["variation"], run["speaker"], run["clips"], run["steps"]) for run in runs]
    n_clips = {"lucas": 30, "theo": 30, "": 20}
    assert about == [(name, who, n, 3) for name in variations for who, n in n_clips.items()]
    assert all(0 <= run["accuracy"] < 0.5 and run["wrong"] for run in runs)
    assert "| untold | 3 |" in speakers.results({"runs": runs})
    assert "all known" in capsys.readouterr().out


def _batches(streams: list[speakers.Stream], n_workers: int, n_steps: int) -> Any:
    """The batches of every step without worker processes."""
    configs, n = [stream.config() for stream in streams], len(streams)
    datasets = [dataset.load(config) for config in configs]
    slots = speakers.ring(bytearray(speakers.ring_bytes(n, configs[0])), n, configs[0])
    for step in range(n_steps):
        for i, config in enumerate(configs):
            speakers.fill(slots[step], i, datasets[i].batch(config, step))
        yield slots[step]


def test_batches_of_several_trainings_share_a_buffer() -> None:
    config = speakers.Stream("", "theo", 1).config()
    slots = speakers.ring(bytearray(speakers.ring_bytes(2, config)), 2, config)
    last = {name: leaf.copy() for name, leaf in slots[-1].items()}
    batch = {"targets": np.full((16, 6), 7), "source": np.ones((16, 160, 32))}
    speakers.fill(slots[-2], 1, batch)
    assert slots[-2]["targets"][1].sum() == 16 * 6 * 7
    assert slots[-2]["source"][1].sum() == batch["source"].size
    assert not slots[-2]["targets"][0].any()
    assert all((slots[-1][name] == last[name]).all() for name in last)


@pytest.mark.parametrize(
    ("head", "weights"),
    [("off", [0, 0, 0]), ("always", [1, 1, 1]), ("falling", [1, 0.5, 0])],
)
def test_weight_of_the_frames_head_over_a_training(head: str, weights: list[float]) -> None:
    assert [speakers.HEADS[head](share) for share in (0, 0.25, 0.75)] == weights


@pytest.mark.slow
def test_a_variation_of_pairs_has_error_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> None:
        train.main(command[2:])  # in this process, which has imported what it needs

    monkeypatch.setattr(sweep, "subprocess", types.SimpleNamespace(run=run))
    path = tmp_path / "pairs.tsv"
    words = (f"{i:b}".translate({48: "a", 49: "b"}) for i in range(64, 124))
    path.write_text("".join(f"{word}\tA B\n" for word in words))  # of one length
    small = f"--config configs/g2p_cpu.py --data.path {path} --data.val-fraction 0.2 "
    small += f"{ONE_LAYER} --train.batch-size 4 --train.max-steps 3 --train.sample-tokens 0"
    variation = sweep.Variation("other rate", "--optim.learning-rate 1e-3")
    found = sweep.measure_pairs(sweep.Sweep("tiny", small, (variation,), 1), variation)
    assert found["val_loss"][0] > 0
    assert 0 <= found["wer"] <= 1
    rows = sweep.error_rates({"runs": [found | {"name": variation.name}]})
    assert "| other rate |" in rows
