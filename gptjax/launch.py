"""Facts of one start of `gptjax train`, which are not part of the configuration."""

import re
from dataclasses import dataclass
from pathlib import Path

from gptjax import config_checks
from gptjax.errors import UserError


@dataclass(frozen=True)
class Launch:
    """Facts of one start: folder, trackers, processes. They are not part of the configuration."""

    run_dir: Path | None = None
    """The run directory; default runs/NAME of the config file. A run in it is continued."""
    resume: bool = False
    """Refuse to start a new run: there must be a checkpoint to continue from."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: tensorboard)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra: wandb)."""
    compilation_cache: bool = True
    """Keep compiled programs on disk, for the next start. On a GPU or TPU only."""
    coordinator: str = ""
    """HOST:PORT of process 0, if there are several. Slurm, Open MPI and Kubernetes provide it."""
    processes: int = 0
    """Number of processes. 0: one, or as many as the cluster started."""
    process: int = -1
    """Index of this process, from 0. -1: the cluster provides it."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the optional trackers to log to."""
        return ("tensorboard",) * self.tensorboard + ("wandb",) * self.wandb

    @property
    def folder(self) -> Path:
        """The run directory. Raises UserError if there is none."""
        if self.run_dir is None:
            raise UserError("--run-dir is missing; name a folder for the run")
        return self.run_dir


def check_launch(launch: Launch) -> None:
    """Raises UserError for a launch of several processes that is incomplete or inconsistent."""
    explicit = [bool(launch.coordinator), launch.processes > 0, launch.process >= 0]
    if any(explicit) and not all(explicit):
        raise UserError(
            "--coordinator, --processes and --process go together: HOST:PORT, the number of "
            "processes, and the index of this one"
        )
    if all(explicit):
        is_address = re.fullmatch(r".+:\d{1,5}", launch.coordinator)
        config_checks.require(bool(is_address), "coordinator", launch.coordinator, "HOST:PORT")
        in_range = launch.process < launch.processes
        config_checks.require(in_range, "process", launch.process, f"in [0, {launch.processes})")
