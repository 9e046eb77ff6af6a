"""Joins the processes of a run, chooses device and threads, and checks the number of processes."""

import ctypes
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers

from refseg.config import TrainConfig
from refseg.errors import RecipeError, TrainingError

logger = logging.getLogger(__name__)

CPU_COMMAND = "accelerate launch --config_file refseg/configs/accelerate_cpu2.yaml refseg/train.py ..."
SMALL_ENCODERS = {"", "tiny"}
"""Image encoders that are made for a CPU; the empty name stands for an unknown model."""


def start_accelerator(config: TrainConfig, out: Path | None = None, *, image_encoder: str = "") -> Accelerator:
    """Join the other processes of the run, and choose device and precision.

    The recipe determines the precision, even if the launcher's environment names another one.

    Args:
        config: The recipe's `[train]` section.
        out: The run's folder, in which trackers write their files. If None, no trackers are started.
        image_encoder: The recipe's image encoder. It determines whether a GPU is expected. Empty if it is unknown.

    Raises:
        TrainingError: If fewer processes started than were requested. If there are more processes than GPUs.
        RecipeError: If this machine does not support a setting of the recipe. If a tracker is not installed.
    """
    if out:
        refuse_missing_trackers(config.trackers)
    cpu = not torch.cuda.is_available()
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and num_local > torch.cuda.device_count():
        raise TrainingError(
            f"{num_local} processes were started on a machine with {torch.cuda.device_count()} GPUs; start one per "
            f"GPU, or train on the CPU: {CPU_COMMAND}"
        )
    # The gradient of a 1 x 1 convolution may have other strides than its weight; the copy that torch warns of is cheap.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.precision,
        log_with=list(config.trackers) if out and config.trackers else None,
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    refuse_missing_processes(accelerator.num_processes, os.environ)
    warn_about_other_precision(os.environ, config.precision)
    if accelerator.device.type == "cpu":
        _refuse_gpu_settings(config, accelerator.num_processes)
        warn_about_missing_gpu(os.environ, image_encoder=image_encoder)
        threads = cpu_threads(os.environ, num_cores=len(os.sched_getaffinity(0)), num_local=num_local)
        torch.set_num_threads(threads)
        _repeat_every_bit()
        logger.info("running %d CPU processes on this machine with %d threads each", num_local, threads)
    return accelerator


def refuse_missing_trackers(trackers: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed. Accelerate would only skip them with a warning.

    Args:
        trackers: Accelerate's names of the trackers.

    Raises:
        RecipeError: If a package is missing. The message lists all missing packages.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in dict.fromkeys(trackers) if name not in available]:
        # Accelerate supports no later version of aim than 3.
        packages = " ".join("'aim<4'" if name == "aim" else name for name in missing)
        raise RecipeError(
            f"train.trackers: found {', '.join(map(repr, missing))}, which is not installed; "
            f"pip install {packages}, or leave it out"
        )


def warn_about_missing_gpu(environ: Mapping[str, str], *, image_encoder: str) -> None:
    """Warn if a run that is intended for a GPU runs on the CPU, unless the user requested the CPU.

    The user requests the CPU with `accelerate launch --cpu`, ACCELERATE_USE_CPU=true or CUDA_VISIBLE_DEVICES=-1. An
    empty CUDA_VISIBLE_DEVICES does not count, because schedulers set it if no GPU was requested.

    Args:
        environ: Environment of this process. The process runs on the CPU.
        image_encoder: Image encoder of the recipe. Empty if there is none.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and re.fullmatch(r"\s*-\d+\s*(,\s*-\d+\s*)*", visible)
    if hidden or environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "t", "y"):
        return
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    asked = [f"the recipe's image encoder is {image_encoder}"] if image_encoder not in SMALL_ENCODERS else []
    asked += [f"CUDA_VISIBLE_DEVICES is {visible!r}"] if visible else []
    asked += [f"accelerate was started with mixed precision {precision}"] if precision != "no" else []
    if asked:
        logger.warning(
            "NO GPU IS USED: this runs on the CPU although a GPU seems to be expected (%s). %s. On a CPU a model of a "
            "published size is tens to hundreds of times slower. Stop it and make a GPU available, or choose the CPU "
            "explicitly: ACCELERATE_USE_CPU=true, or accelerate launch --cpu",
            ", ".join(asked), _why_none(visible),
        )  # fmt: skip


def warn_about_other_precision(environ: Mapping[str, str], precision: str) -> None:
    """Warn about a precision that was given to `accelerate launch` but is not used.

    Args:
        environ: Environment of this process.
        precision: Precision of the recipe, which is used.
    """
    launched = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        logger.warning(
            "accelerate was started with mixed precision %s, which is not used: the precision is %s (training uses "
            "train.precision of its recipe; an evaluation uses no mixed precision)",
            launched, precision,
        )  # fmt: skip


def die_with_launcher() -> None:
    """Ask Linux to end this process when its launcher ends, even if the launcher is killed.

    The launchers start their processes in separate sessions. Without this request, the processes would continue after
    the launcher is killed, and repeating the command would start a second run in the same folder. The launcher of a
    single process does not forward SIGTERM but ends when it receives this signal. The launched process then receives
    SIGTERM, so that the run can save its work. A process without a launcher does not end together with its parent. The
    parent may be a shell that ends before the run.
    """
    if _is_launched(os.environ) and sys.platform == "linux":
        pr_set_pdeathsig = 1
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL if elastic else signal.SIGTERM)


def refuse_missing_processes(num_processes: int, environ: Mapping[str, str]) -> None:
    """Refuse to train with one process if several were asked for.

    `accelerate launch --cpu --num_processes 2` silently starts a single process (accelerate 1.15). The launcher for one
    process sets MASTER_ADDR exactly if more than one process or machine was requested. It never sets WORLD_SIZE,
    whereas every launcher of several processes sets it.

    Args:
        num_processes: Number of processes that started.
        environ: Environment of this process.

    Raises:
        TrainingError: If processes are missing. The message gives the command that starts several processes.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environ
    if num_processes == 1 and by_accelerate and "MASTER_ADDR" in environ and "WORLD_SIZE" not in environ:
        raise TrainingError(
            "found 1 process, but `accelerate launch` was asked for several: on a CPU it starts them only as "
            f"`{CPU_COMMAND}` (unset MASTER_ADDR if one process is intended)"
        )


def cpu_threads(environ: Mapping[str, str], *, num_cores: int, num_local: int) -> int:
    """Return the number of threads. It is OMP_NUM_THREADS if the user set it, else this process's share of the cores.

    Launchers set OMP_NUM_THREADS if the user did not. torchrun sets 1, and accelerate sets 1 or a share of the
    machine's cores. These values could leave most of a machine idle, or exceed the cores that this process may use.
    Therefore, in a launched process, the variable is used only if it is in the environment or command line of the
    launcher. Outside Linux these cannot be read, and any number except 1 is used.

    Args:
        environ: Environment of this process.
        num_cores: Number of cores that this process may run on.
        num_local: Number of processes of the run on this machine.
    """
    wanted = re.match(r"\s*([1-9][0-9]*)", environ.get("OMP_NUM_THREADS", ""))  # "4,2": 4, and 2 in nested regions
    if wanted:
        set_by_user = _set_for_launcher() if _is_launched(environ) else True
        if set_by_user or (set_by_user is None and int(wanted[1]) > 1):
            return int(wanted[1])
    return max(1, num_cores // num_local)


def _is_launched(environ: Mapping[str, str]) -> bool:
    """Return True if environment variables show that torchrun or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in environ or "ACCELERATE_DYNAMO_MODE" in environ


def _set_for_launcher() -> bool | None:
    """Return True if the user gave the launcher a number of threads. Return None if this cannot be read."""
    process = Path(f"/proc/{os.getppid()}")
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
        arguments = (process / "cmdline").read_bytes()
    except OSError:
        return None
    return b"num_cpu_threads_per_process" in arguments or any(
        variable.startswith(b"OMP_NUM_THREADS=") for variable in variables
    )


def _repeat_every_bit() -> None:
    """Make torch add numbers in the same order each time, even with several threads.

    Several sentences may share one image. By default, threads then add the gradients of the image in a random order, in
    the backward pass of `features[image_index]`. Two equal runs, or a resumed and an uninterrupted run, would differ in
    the last bits.
    """
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills uninitialised memory, a debugging aid that costs time for each tensor. (Type
    # checkers do not find the attribute, because a class stands in for the module.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _why_none(visible: str | None) -> str:
    if torch.version.cuda is None:
        return "This torch was built without CUDA"
    if visible is not None and not visible.strip():
        return "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs"
    return "torch finds no GPU; `nvidia-smi` shows whether the driver does"


def _refuse_gpu_settings(config: TrainConfig, num_processes: int) -> None:
    if config.precision != "no":
        raise RecipeError(
            f"train.precision: found {config.precision!r} without a GPU, where it is 20 to 30 times slower than "
            "float32; set train.precision=no"
        )
    if config.batchnorm == "sync" and num_processes > 1:
        raise RecipeError(
            "train.batchnorm: found 'sync' without GPUs, which torch cannot do; set train.batchnorm=local"
        )
