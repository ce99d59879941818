"""What a run keeps is read back, checked when it is read, and never written through links."""

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import MAX_STEPS, TINY_RUN, Printed, Refused

from gptjax import atomic, models, train
from gptjax.commands import plot, prepare, sample
from gptjax.config import BigramConfig, Config
from gptjax.data.tokenizer import CharTokenizer
from gptjax.errors import Interrupted, SaveError, UserError, exit_codes
from gptjax.runs import checkpoints, manifest, metrics, run_directory
from gptjax.runs.checkpoints import Checkpoints
from gptjax.runs.report import Reporter
from gptjax.training import TrainState


def some_state(step: int, n: int = 64) -> TrainState:
    """A training state of a few arrays that depend on the step."""
    w = jax.random.normal(jax.random.key(step), (n, n))
    opt_state = {"1.0.mu.w": 2 * w, "1.0.count": jnp.int32(step)}
    return TrainState(jnp.int32(step), {"w": w, "b": w[0].astype(jnp.bfloat16)}, opt_state)


def saved(folder: Path, losses: dict[int, float | None], keep_latest: int = 2) -> Checkpoints:
    """Checkpoints of these steps, with their validation losses."""
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep_latest)) as made:
        for step, loss in losses.items():
            made.save(some_state(step), loss)
    return made


def equal(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def damage(path: Path, kind: str, seed: int = 0) -> None:
    """Flips a bit of a file, cuts its end off, empties it, or deletes it."""
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "flip":
        i = random.Random(seed).randrange(8 * len(content))
        content[i // 8] ^= 1 << i % 8
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if kind == "cut" else b"")


@pytest.fixture
def copied(text_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_run, tmp_path / "copy"))


@pytest.fixture
def printed_and_said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Samples greedily from a run: (exit code, text, lines on stderr)."""

    def call(run: Path, *flags: str) -> tuple[int, str, list[str]]:
        code = 0
        capsys.readouterr()
        try:
            sample.main([str(run), "--max-new-tokens", "30", "--no-stream", "--greedy", *flags])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else -1
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


# --- what is saved is read back


@pytest.mark.parametrize("name", ["a[1]", "[ab]*?", "back\\slash", "**", "gs:/x", "end~", "ü\n"])
def test_any_path_keeps_checkpoints(tmp_path: Path, name: str) -> None:
    """orbax takes [ ] * ? in the path for a pattern, also in the name of a parent."""
    folder = tmp_path / name / "run"
    made = saved(folder, {1: 2.0, 2: 1.0})
    assert made.steps() == [1, 2]
    assert equal(made.restore(2, some_state(0)), some_state(2))
    tok = CharTokenizer("abc")
    model = models.build(BigramConfig(), tok)
    params = models.init(model, seed=0)
    with run_directory.new_run(tmp_path / name / "out[4]") as part:
        facts = {"source": "nothing", "sha256": "0"}
        checkpoints.save_finished(part, Config(BigramConfig()), tok, params, facts)
    assert equal(checkpoints.load_params(tmp_path / name / "out[4]", model)[1], params)


@pytest.mark.slow
def test_a_run_in_a_path_with_brackets_is_trained_resumed_and_sampled(
    tmp_path: Path, text_file: Path, printed_and_said: Any
) -> None:
    run = tmp_path / "proj [2026]" / "a*b?"
    for steps in (MAX_STEPS, MAX_STEPS + 2):
        flags = ["--data.path", str(text_file), "--run-dir", str(run)]
        train.main([*TINY_RUN, *flags, "--train.max-steps", str(steps)])
    assert printed_and_said(run, "--step", str(MAX_STEPS + 2))[0] == 0


@pytest.mark.parametrize("broken", ["unmerged", "not finite", "missing", "other shape"])
def test_a_checkpoint_that_does_not_read_back_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    state = some_state(5)
    if broken == "unmerged":  # as orbax leaves it where its pattern matches nothing
        monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", lambda self, folder: None)
    elif broken == "not finite":
        state = state._replace(params={"w": jnp.full((2, 2), jnp.nan)})
    made = Checkpoints(tmp_path / "checkpoints", keep_latest=1)
    if broken in ("missing", "other shape"):
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        name = "v" if broken == "missing" else "w"
        save = made._save

        def expect_more(step: int, trees: Any, val_loss: Any) -> None:
            save(step, trees, val_loss)
            made._saving[2]["params"][name] = shape

        monkeypatch.setattr(made, "_save", expect_more)
    made.save(state)
    with pytest.raises(SaveError, match=r"checkpoints/5 could not be saved \(array .*read back"):
        made.wait()
    with contextlib.suppress(SaveError):
        made.close()
    assert made.steps() == []


def test_the_best_checkpoint_is_kept_and_found(tmp_path: Path) -> None:
    made = saved(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5})
    assert made.steps() == [2, 4, 5]
    assert Checkpoints(tmp_path / "checkpoints").best() == 2
    made = saved(tmp_path, {6: 2.0})  # a run that continues, too
    assert made.steps() == [2, 5, 6]
    made = saved(tmp_path, {6: 9.0, 7: None})
    made = saved(tmp_path, {7: 0.5})  # evaluated after it was saved
    assert made.best() == 7
    assert equal(made.restore(7, some_state(0)), some_state(7))


# --- what is damaged is found


@pytest.mark.slow
def test_any_damage_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """Of every file of a checkpoint, in four ways."""
    made = saved(tmp_path, {1: 2.0, 2: 1.0})
    files = [p for p in (made.folder / "2").rglob("*") if p.is_file()]
    essential = 0
    for i, path in enumerate(files):
        for kind in ("flip", "cut", "empty", "delete"):
            content = path.read_bytes()
            damage(path, kind, seed=i)
            found = manifest.damage(made.folder / "2")
            # What is found is what restoring goes by: once is enough.
            if not found or not essential:
                step, state, said = checkpoints.restore_newest(tmp_path, some_state(0))
                assert equal(state, some_state(step))
                assert (step == 1) == bool(found) == ("checkpoint 2 is damaged (" in said)
                if found:
                    (made.folder / "2.damaged").rename(made.folder / "2")
            essential += bool(found)
            path.write_bytes(content)
    # orbax's own record of the checkpoint is not needed; nor is a manifest that is missing.
    assert essential == 4 * (len(files) - 3) + 3


@pytest.mark.parametrize("item", ["params", "opt_state"])
def test_a_missing_part_of_a_checkpoint_is_found(tmp_path: Path, item: str) -> None:
    made = saved(tmp_path, {1: 2.0, 2: 1.0})
    shutil.rmtree(made.folder / "2" / item)
    step, _, said = checkpoints.restore_newest(tmp_path, some_state(0))
    assert step == 1
    assert item in said
    assert "is missing" in said
    (made.folder / "9").mkdir()
    assert checkpoints.restore_newest(tmp_path, some_state(0))[0] == 1
    shutil.rmtree(made.folder / "1" / "params")
    with pytest.raises(UserError, match=r"checkpoint 1 is damaged .*restore it from a copy"):
        checkpoints.restore_newest(tmp_path, some_state(0))


def test_a_renamed_checkpoint_is_not_believed(tmp_path: Path) -> None:
    """Training would go on at a step with another learning rate, and other batches."""
    made = saved(tmp_path, {10: 2.0, 20: 1.0})
    (tmp_path / "checkpoints" / "20").rename(tmp_path / "checkpoints" / "25")
    with pytest.raises(checkpoints.Damaged, match="the checkpoint of step 20, renamed"):
        made.restore(25, some_state(25))
    step, _, said = checkpoints.restore_newest(tmp_path, some_state(10))
    assert step == 10
    assert "checkpoint 25 is damaged" in said


def test_checkpoints_without_checksums_are_read(tmp_path: Path) -> None:
    """As they were written before 2026-11-26. What orbax refuses is one line then, too."""
    made = saved(tmp_path, {1: 2.0, 2: 1.0})
    for step in (1, 2):
        (made.folder / str(step) / "manifest.json").unlink()
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "seconds": 1, "val_loss": 0.5}\n{"step": 2, "seconds": 2, "val_loss": 0.9}\n'
    )
    assert made.best() == 1
    assert equal(made.restore(2, some_state(0)), some_state(2))
    damage(made.folder / "2/opt_state/manifest.ocdbt", "delete")
    step, _, said = checkpoints.restore_newest(tmp_path, some_state(0))
    assert step == 1
    assert "checkpoint 2 is damaged (" in said
    assert "\n" not in said


@pytest.mark.slow
def test_sampling_from_a_damaged_run_is_right_or_one_line(
    copied: Path, printed_and_said: Any
) -> None:
    """Damage anywhere in the run directory."""
    whole = {step: printed_and_said(copied, "--step", step)[1] for step in ("2", "4")}
    assert printed_and_said(copied)[0] == 0
    files = sorted(path for path in copied.rglob("*") if path.is_file())
    rng = random.Random(0)
    for trial in range(24):
        path, kind = rng.choice(files), rng.choice(["flip", "cut", "empty", "delete"])
        content = path.read_bytes()
        damage(path, kind, trial)
        code, text, lines = printed_and_said(copied)
        if code:
            assert (code, text, len(lines)) == (2, "", 1), (path, kind)
        else:
            said = lines[-1].split("step ")[1].split(",")[0]
            assert text == whole[said], (path, kind)
            assert said == "4" or "checkpoint 4 is damaged" in lines[0], (path, kind)
        path.write_bytes(content)


def test_a_step_that_was_asked_for_is_not_replaced(copied: Path, refused: Refused) -> None:
    damage(copied / "checkpoints/4/params/_METADATA", "cut")
    line = refused(sample.main, copied, "--step", "4")
    assert "checkpoint 4 is damaged (params/_METADATA has" in line
    assert "try --step 2" in line
    damage(copied / "checkpoints/2/params/_METADATA", "delete")
    assert "checkpoint 2 is damaged (params/_METADATA is missing)" in refused(sample.main, copied)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_changed_character_in_a_json_file_is_found(
    copied: Path, refused: Refused, name: str, printed_and_said: Any
) -> None:
    path, good = copied / name, printed_and_said(copied)
    text = path.read_text()
    changes = {"tokenizer.json": ("abc", "abd"), "config.json": ('"seed": 1337', '"seed": 1437')}
    path.write_text(text.replace(*changes[name]))
    line = refused(sample.main, copied)
    assert f"{path} is damaged or was edited" in line
    # A run from before has no checksums.
    content = json.loads(text)
    del content["crc32"]
    path.write_text(json.dumps(content))
    assert printed_and_said(copied) == good


@pytest.mark.slow
def test_training_continues_from_the_newest_intact_checkpoint(
    copied: Path, text_file: Path, printed: Printed
) -> None:
    damage(next((copied / "checkpoints/4/opt_state/d").iterdir()), "flip")
    lines = (copied / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[2:2] = [b'{"step": 2, "sec\n', b"\xff\x00\n", b'{"step": true}\n']
    (copied / "metrics.jsonl").write_bytes(b"".join(lines))
    out = printed(train.main, *TINY_RUN, "--data.path", text_file, "--run-dir", copied)
    assert "warning: checkpoint 4 is damaged (opt_state/d/" in out
    assert "continuing at step 2" in out
    assert "metrics.jsonl: damaged line 3, 4, 5; kept in the file" in out
    assert {"2", "4", "4.damaged"} <= {p.name for p in (copied / "checkpoints").iterdir()}
    kept = (copied / "metrics.jsonl").read_bytes().splitlines()
    assert kept[2:5] == [b'{"step": 2, "sec', b"\xff\x00", b'{"step": true}']
    assert [row["step"] for row in metrics.read_metrics(copied)][-1] == MAX_STEPS


def test_plots_name_damaged_lines(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(copied / "metrics.jsonl", "a") as file:
        file.write("[" * 100_000 + '\n{"step": 9, "seconds": 1, "val_loss": NaN}\n[1]\n{"step"')
    n = len(metrics.metrics_lines(copied))
    plot.main([str(copied), "--out", str(tmp_path / "a.png")])
    assert f"damaged line {n - 2}, {n - 1}, {n};" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 2])
def test_metrics_that_were_cut_off_are_said(
    copied: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    config = run_directory.read_config(copied)
    with Reporter(copied, config, MAX_STEPS, 1.0):
        assert "warning" not in capsys.readouterr().out
    lines = (copied / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_bytes(b"".join(lines[:kept]))
    with Reporter(copied, config, MAX_STEPS, 1.0):
        assert f"no rows from step {kept // 2} to {MAX_STEPS}" in capsys.readouterr().out


# --- nothing outside of the run is written


def test_links_in_a_run_directory_are_not_followed(copied: Path, tmp_path: Path) -> None:
    """Files that gptjax writes replace a link; where it would write and delete, it is refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("config.json", "metrics.jsonl", "tokenizer.json", "loss.png", "environment.json"):
        for link in (copied / name, copied / f"{name}.part"):
            (outside / name).write_text("precious")
            link.unlink(missing_ok=True)
            link.symlink_to(outside / name)
            atomic.write_text(copied / name, "new")
            assert (outside / name).read_text() == "precious"
            assert not (copied / name).is_symlink()
            assert (copied / name).read_text() == "new"
    (copied / "lock").unlink()
    (copied / "lock").symlink_to(outside / "config.json")
    with pytest.raises(UserError, match="cannot be written"), run_directory.locked(copied):
        pass
    (copied / "lock").unlink()
    for name in ("checkpoints", "samples", "tensorboard", "wandb", "checkpoints/3"):
        path = copied / name
        if path.exists():
            path.rename(tmp_path / "aside")
        for target in (outside, tmp_path / "nowhere"):
            path.symlink_to(target)
            refused = pytest.raises(UserError, match=f"{name} is a symbolic link")
            with refused, run_directory.locked(copied):
                pass
            path.unlink()
        if (tmp_path / "aside").exists():
            (tmp_path / "aside").rename(path)
    assert {p.read_text() for p in outside.iterdir()} == {"precious"}
    (tmp_path / "link").symlink_to(copied)  # the run directory itself may be one
    with run_directory.locked(tmp_path / "link"):
        assert (copied / "lock").read_text() == str(os.getpid())


def test_a_checkpoint_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    made = saved(tmp_path, {1: 2.0, 2: 1.0})
    (made.folder / "2").rename(tmp_path / "elsewhere")
    (made.folder / "2").symlink_to(tmp_path / "elsewhere")
    assert manifest.damage(made.folder / "2") == "2 is a symbolic link"


def test_a_checkpoint_that_is_a_file_is_not_read(
    copied: Path, printed_and_said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    last = copied / "checkpoints" / str(MAX_STEPS)
    shutil.rmtree(last)
    last.write_text("half a copy")
    code, _, said = printed_and_said(copied, "--step", "latest")
    assert code == 0
    assert f"checkpoint {MAX_STEPS} is damaged (it is no folder); using step " in said[0]


@pytest.mark.parametrize("name", ["٣٠", "030", "3_0", "²"])
def test_only_the_names_that_orbax_gives_are_checkpoints(tmp_path: Path, name: str) -> None:
    made = saved(tmp_path, {1: 2.0})
    (made.folder / name).mkdir()
    assert made.steps() == [1]


def test_a_step_of_many_digits_is_not_there(copied: Path, refused: Refused) -> None:
    line = refused(sample.main, copied, "--step", "9" * 5000)
    assert "is not there; " in line


@pytest.mark.parametrize(("old", "new"), [("3", "2"), ("crc32", "crc33"), (", ", ",  ")])
def test_a_row_that_still_parses_is_checked(tmp_path: Path, old: str, new: str) -> None:
    with Reporter(tmp_path, Config(), 0, 1.0) as report:
        for step in (1, 2):
            report.training(step, 3.25, 1.0, 0.1)
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second.replace(old, new)}\n")
    is_same = json.loads(second) == json.loads(second.replace(old, new))
    assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2][: 1 + is_same]
    assert ("damaged line 2" in metrics.damaged_lines(tmp_path)) != is_same


# --- failures of the disk and the file system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


# pytest replaces the hook that leaves out what tensorstore reports after orbax gave up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_checkpoints_before(small_disk: Path) -> None:
    """At several amounts of free space, so at several places in the middle of a save."""
    made = saved(small_disk, {1: 2.0})
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    full = filler.stat().st_size
    for free in (0, 4, 16, 32, 64):
        os.truncate(filler, full - free * 1024)
        if free == 0:
            with pytest.raises(OSError, match=r"No space left on device: .*/notes.json'"):
                atomic.write_json(small_disk / "notes.json", [0] * 5000)
        with pytest.raises(SaveError, match=r"checkpoints/2 could not be saved \(No space left"):
            saved(small_disk, {2: 1.0})
        assert made.steps() == [1]
        assert equal(made.restore(1, some_state(0)), some_state(1))
    filler.unlink()
    made = saved(small_disk, {2: 1.0})
    assert equal(made.restore(2, some_state(0)), some_state(2))
    assert sorted(p.name for p in made.folder.iterdir()) == ["1", "2"]


def test_commands_on_a_full_disk_say_which_path(
    small_disk: Path, text_run: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    commands = {
        "tokens": (prepare.main, ["--tokenizer", "char", str(text_file), "--out"]),
        "a.png": (plot.main, [str(text_run), "--out"]),
        "run/lock": (train.main, ["--config", "debug", "--run-dir"]),
    }
    for name, (main, arguments) in commands.items():
        out = small_disk / name.removesuffix("/lock")
        with pytest.raises(SystemExit) as stop:
            main([*arguments, str(out)])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 1, line
        assert f"{small_disk / name}" in line
        assert "No space left on device" in line


def test_sigterm_leaves_no_half_made_folder(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        with atomic.atomic_folder(tmp_path / "tokens"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(Interrupted):
        end()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


class OtherLibraryError(Exception):
    """Not an OSError, as safetensors and tensorstore raise it."""


@pytest.mark.parametrize(
    "error",
    [
        (OSError, errno.ENOSPC, "No space left on device"),
        (OSError, errno.EDQUOT, "Disk quota exceeded"),
        (OtherLibraryError, "I/O error: No space left on device (os error 28)"),
        (OtherLibraryError, "could not write: Read-only file system"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "run", "data"])
def test_a_full_disk_is_one_line_that_names_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Any, kind: str
) -> None:
    """Metrics, plots, samples, exports and token files are written by these three."""
    makers = {
        "file": atomic.atomic_file,
        "run": run_directory.new_run,
        "data": atomic.atomic_folder,
    }

    def write_half() -> None:
        with exit_codes(), makers[kind](tmp_path / "out") as part:
            if kind == "file":
                part.write_text("half")
            raise error[0](*error[1:])

    with pytest.raises(SystemExit) as stop:
        write_half()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/out: ")
    assert list(tmp_path.iterdir()) == []


def test_metrics_on_a_full_disk_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Reporter(tmp_path, Config(), 0, 1.0)
    report._metrics.close()
    report._metrics = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    with pytest.raises(SystemExit) as stop, exit_codes(), report:
        report.training(1, 2.0, 1.0, 0.1)
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: {tmp_path}/metrics.jsonl: No space left on device"


@pytest.mark.parametrize("gone", [".", "checkpoints"])
def test_a_folder_deleted_in_the_middle_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    made = Checkpoints(tmp_path / "run/checkpoints", keep_latest=2)
    made.save(some_state(1), 2.0)
    made.wait()
    shutil.rmtree(tmp_path / "run" / gone)
    with pytest.raises(SystemExit) as stop, exit_codes(), contextlib.closing(made):
        made.save(some_state(2), 1.0)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/run/checkpoints is gone" in line


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_not_a_run_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_directory.locked(tmp_path / "run"):
        assert (tmp_path / "run/lock").read_text() == str(os.getpid())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/run is on a file system that cannot lock files (")


def test_a_lock_that_another_holds_is_told_from_that(tmp_path: Path) -> None:
    run, refused = tmp_path / "run", pytest.raises(UserError, match="in use by process")
    with run_directory.locked(run):
        with refused as error, run_directory.locked(run):
            pass
        assert f"in use by process {os.getpid()};" in str(error.value)
        (run / "lock").write_bytes(b"\xff" * 9999)  # no text
        with refused as error, run_directory.locked(run):
            pass
        assert len(str(error.value)) < 300
