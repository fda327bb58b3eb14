"""What sbatch is asked for: the launcher's keys, checked and as submitit takes them."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil

from harness.config import Config
from harness.errors import UserError
from sweeps.jobs import Settings

# sbatch's name -> the key of `launcher.` that says it.
OWN = {"partition": "partition", "account": "account", "qos": "qos", "time": "time", "cpus-per-task": "cpus",
       "mem": "memory", "gpus": "gpus", "signal": "signal_seconds", "array": "max_running"}  # fmt: skip
OURS = ("job-name", "output", "error", "open-mode", "requeue", "no-requeue", "dependency", "nodes", "ntasks",
        "ntasks-per-node", "wrap", "parsable", "clusters")  # fmt: skip
GPU_FLAGS = ("gres", "gpus-per-node", "gpus-per-task", "tres-per-node")  # a kind of GPU: they replace ours


def check_request(config: Config) -> None:
    """Raises UserError where submitit or Slurm is missing, or a value cannot be."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("launcher=slurm needs the package submitit: pip install 'hyperlaw[slurm]'.")
    for program in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        if not shutil.which(program):
            raise UserError(f"launcher=slurm needs Slurm's commands, and {program} is not here: start it on a login node.")
    check_values(config)


def check_values(config: Config) -> None:
    """Raises UserError for values that sbatch would not take, or that contradict each other."""
    launcher = config.launcher
    if launcher.time is not None and launcher.signal_seconds >= 60 * minutes(launcher.time):
        raise UserError(f"launcher.signal_seconds={launcher.signal_seconds} is not below launcher.time={launcher.time}: "
                        "there would be no time to train.")  # fmt: skip
    if launcher.memory is not None and not re.fullmatch(r"0|[1-9]\d*[KMGT]?B?", str(launcher.memory).upper()):
        raise UserError(f"launcher.memory={launcher.memory} is no size: say 16G, 500M, megabytes, or 0, all of a node.")
    if config.device == "cuda" and launcher.gpus == 0:
        raise UserError("device=cuda with launcher.gpus=0: say how many GPUs an allocation has, launcher.gpus=1.")
    if config.device == "cpu" and launcher.gpus > 0:
        raise UserError(f"device=cpu with launcher.gpus={launcher.gpus}: they would stand idle; leave one of the two out.")
    if launcher.gpus and launcher.devices_per_point > launcher.gpus:
        raise UserError(f"launcher.devices_per_point={launcher.devices_per_point} is more than launcher.gpus="
                        f"{launcher.gpus} of an allocation.")  # fmt: skip
    for line in launcher.setup:
        if "\n" in str(line):
            raise UserError("launcher.setup is a list of lines: one entry each, [\"module load cuda\", \"ulimit -n 4096\"].")
    for key, value in launcher.sbatch.items():
        name = str(key).strip("-").replace("_", "-")
        if name in OWN:
            raise UserError(f"launcher.sbatch.{key}: this has a key of its own, launcher.{OWN[name]}.")
        if name in OURS or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"launcher.sbatch.{key} cannot be set: the launcher does, or it is no flag of sbatch.")
        if isinstance(value, (dict, list)) or "\n" in str(value):
            raise UserError(f"launcher.sbatch.{key} must be one value: text, a number, or true for a flag without one.")


def minutes(limit: str) -> int:
    """A time limit in whole minutes, rounded up, from sbatch's forms: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises
    UserError."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(limit).strip())
    if not found:
        raise UserError(f"launcher.time={limit} is no time limit: say 4:00:00, 1-12 (days-hours), or minutes; "
                        "null is the partition's.")  # fmt: skip
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:
        parts = [0, *parts]  # minutes come first
    hours, mins, secs = (parts + [0, 0])[:3]
    total = math.ceil((int(days or 0) * 86400 + hours * 3600 + mins * 60 + secs) / 60)
    if total < 1:
        raise UserError(f"launcher.time={limit} must be positive; null is the partition's limit.")
    return total


def parameters(settings: Settings) -> dict:
    """For submitit's SlurmExecutor.update_parameters; job_name, array_parallelism and dependency are the caller's."""
    given = settings.engine
    cpus = given["cpus"] or settings.workers * settings.threads * settings.devices_per_point
    extra = {str(k).strip("-").replace("_", "-"): v for k, v in given["sbatch"].items()
             if v is not None and v is not False}  # fmt: skip
    typed = any(flag in extra for flag in GPU_FLAGS)
    memory = str(given["memory"]).upper().rstrip("B") if given["memory"] is not None else None
    return {
        "partition": given["partition"],
        "account": given["account"],
        "qos": given["qos"],
        "time": minutes(given["time"]) if given["time"] is not None else None,  # submitit would say 5 minutes
        "wckey": None,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "gpus_per_node": given["gpus"] or None if not typed else None,
        "mem": memory,
        "signal_delay_s": given["signal_seconds"],
        "setup": [str(line) for line in given["setup"]],
        "stderr_to_stdout": True,
        "srun_args": [f"--cpus-per-task={cpus}"],  # srun no longer takes it from the allocation
        "additional_parameters": {"requeue": True, **extra},
    }
