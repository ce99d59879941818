"""The image's entry point and context, without building it; `make docker-test` builds it."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gptjax import cli

REPO = Path(__file__).parents[1]
ENTRYPOINT = REPO / "docker" / "entrypoint.sh"
IMAGE_SCRIPT = "/app/docker/entrypoint.sh"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Stand-ins for the image's programs: each prints its PID, its name and its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gptjax", "python"):
        program = programs / name
        program.write_text('#!/bin/sh\necho $$ ${0##*/}\nprintf "%s\\n" "$@"\nexit 7\n')
        program.chmod(0o755)
    (tmp_path / "runs").mkdir()
    return tmp_path


def docker_run(image: Path, *argv: str) -> tuple[int, list[str], str]:
    """What `docker run gptjax ARGV...` starts: (PID of the entry point, lines, stderr)."""
    path = os.pathsep.join([str(image / "bin"), os.environ["PATH"]])
    with subprocess.Popen(
        ["sh", str(ENTRYPOINT), *argv],
        env={"PATH": path, "RUNS": str(image / "runs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate(timeout=60)
        # The exit code is the program's own.
        assert process.returncode == (2 if err else 7)
        return process.pid, out.splitlines(), err


@pytest.mark.parametrize("command", [*cli.COMMANDS, "python"])
def test_commands(image: Path, command: str) -> None:
    pid, lines, _ = docker_run(image, command, "runs/x", "--prompt", "two words\nand a line")
    # The same PID: the program replaces the shell, so it gets the signals.
    started = [f"{pid} python"] if command == "python" else [f"{pid} gptjax", command]
    assert lines == [*started, "runs/x", "--prompt", "two words", "and a line"]


def test_help(image: Path) -> None:
    for argv in ((), ("help",), ("--help",)):
        pid, lines, _ = docker_run(image, *argv)
        assert lines[0].startswith("usage: docker run ")
        assert lines[-2:] == [f"{pid} gptjax", "--help"]


def test_an_unknown_command(image: Path) -> None:
    """gptjax itself says which command is near."""
    pid, lines, _ = docker_run(image, "trian", "--config", "x")
    assert lines == [f"{pid} gptjax", "trian"]


def test_runs_that_cannot_be_written(image: Path) -> None:
    (image / "runs").rmdir()  # root, who may run this, can write to any folder there is
    for command in ("train", "quantize", "export", "import"):
        _, lines, err = docker_run(image, command)
        assert lines == []
        assert re.fullmatch(r"error: .*/runs cannot be written by user \d+, .*--user .*\n", err)
    assert docker_run(image, "sample", "runs/x")[2] == ""  # which only reads


# --- the context of the build


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last pattern that matches it, or a
    folder that it is in, decides."""
    sent = True
    for line in (REPO / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").split("/")
        parts = path.split("/")[: len(pattern)]
        if len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern)):
            sent = line.startswith("!")
    return sent


def test_the_context_holds_the_program_alone() -> None:
    for path in ("gptjax/models.py", "gptjax/data/texts.py", "configs/gpt.py", "constraints.txt"):
        assert is_sent(path)
    private = ["runs/gpt/config.json", ".git/HEAD", ".venv/bin/python", "gptjax/secret.json"]
    private += ["gptjax/__pycache__/models.cpython-312.pyc", "tests/conftest.py", ".env", "my.txt"]
    private += ["docker/test.sh", "docs/tour.md", "benchmarks/compare.py", "core"]
    for path in private:
        assert not is_sent(path), path


def test_what_is_copied_is_sent_and_there() -> None:
    dockerfile = (REPO / "Dockerfile").read_text()
    copies = re.findall(r"^COPY (?!--from)(.*)", dockerfile, re.MULTILINE)
    assert len(copies) == 4
    for copy in copies:
        for source in copy.split()[:-1]:
            path = REPO / source
            files = path.glob("*.py") if path.is_dir() else [path]
            assert all(is_sent(str(f.relative_to(REPO))) and f.is_file() for f in files), source


def test_the_whole_package_is_sent() -> None:
    """Every file under git in gptjax/ and configs/, but the link from one to the other."""
    command = ["git", "ls-files", "gptjax", "configs"]
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert "gptjax/models.py" in listed
    files = [path for path in listed.split() if not (REPO / path).is_symlink()]
    assert [path for path in files if not is_sent(path)] == []


# --- compose.yaml


def test_services() -> None:
    compose = yaml.safe_load((REPO / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"train", "sample", "tensorboard"}
    for name, service in services.items():
        assert service["read_only"]
        assert service["tmpfs"] == "/tmp"
        assert "./runs:/runs" in service["volumes"]
        assert {v.partition(":")[0] for v in service["volumes"]} - {"./runs"} == set(
            compose["volumes"]
        )
        if name != "tensorboard":
            assert service["entrypoint"] == [IMAGE_SCRIPT, name]
    assert services["tensorboard"]["ports"] == ["127.0.0.1:6006:6006"]  # of this machine alone
    config = shlex.split(services["train"]["command"])[1]
    assert (REPO / config).is_file()
    dockerfile = (REPO / "Dockerfile").read_text()
    assert f'ENTRYPOINT ["{IMAGE_SCRIPT}"]' in dockerfile
    assert set(services["train"]["build"]["args"]) <= set(
        re.findall(r"^ARG (\w+)", dockerfile, re.M)
    )


# --- make docker-test, where it cannot


def skipped(folder: Path, **fakes: str) -> str:
    """The line of docker/test.sh on a machine with little but these programs, which must skip."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("dirname", "flock", "id", "mkdir", "tail"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    for name, script in fakes.items():
        fake = programs / name.replace("_", "-")
        fake.unlink(missing_ok=True)
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, str(REPO / "docker" / "test.sh")],
        env={"PATH": str(programs), "DOCKER_TEST_DIR": str(folder / "work")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith("docker-test: skipped: ")
    return line


def test_skips_without_root(tmp_path: Path) -> None:
    line = skipped(tmp_path, id="echo 1000")
    assert line.endswith("be root")
    assert not (tmp_path / "work").exists()


def test_skips_where_buildah_cannot_be_installed(tmp_path: Path) -> None:
    line = skipped(
        tmp_path, id="echo 0", apt_get="echo 'E: Unable to locate package buildah' >&2; exit 100"
    )
    if "ID=debian" in Path("/etc/os-release").read_text().splitlines():
        words = "apt-get cannot install buildah debootstrap (E: Unable to locate package buildah)"
        assert line.endswith(words)
    else:
        assert "Debian" in line


def test_ci_calls_what_the_readme_tells() -> None:
    commands = re.findall(r"^make \S+$", (REPO / ".ci" / "run").read_text(), re.MULTILINE)
    assert commands == ["make check", "make aot", "make test", "make docker-test"]
    assert "make test " in (REPO / "README.md").read_text()
    page = (REPO / "CONTRIBUTING.md").read_text()
    for command in commands:
        assert f"| `{command}` |" in page


def test_every_room_is_named_for_the_builder() -> None:
    """It skips a folder of gptjax that no pattern names, whatever patterns with * say."""
    patterns = (REPO / ".dockerignore").read_text().splitlines()
    rooms = {path.parent.name for path in REPO.glob("gptjax/*/__init__.py")}
    assert {room for room in rooms if f"!gptjax/{room}/*.py" in patterns} == rooms
