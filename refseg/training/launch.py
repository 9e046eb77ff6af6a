"""How this process came up: with as many others as were asked for, on which device, with how many threads."""

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
"""Image encoders made for a CPU; empty: the model is not known."""


def start_accelerator(config: TrainConfig, out: Path | None = None, *, image_encoder: str = "") -> Accelerator:
    """Join the other processes and choose device and precision.

    The recipe's precision holds, whatever the launcher's environment says: a run is what its recipe says.

    Args:
        config: The recipe's `[train]` section.
        out: The run's folder, in which trackers leave their files; None: without trackers.
        image_encoder: The recipe's, which says whether a GPU is meant; empty: not known.

    Raises:
        TrainingError: If fewer processes came up than were asked for, or there are more than GPUs.
        RecipeError: If the recipe asks for what this machine cannot do, or for trackers that are not installed.
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
    # A 1 x 1 convolution's gradient may have other strides than its weight; copying it costs next to nothing.
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
        logger.info("%d CPU processes here, %d threads each", num_local, threads)
    return accelerator


def refuse_missing_trackers(trackers: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed; Accelerate would pass them over with a warning.

    Args:
        trackers: By Accelerate's names.

    Raises:
        RecipeError: With all that are missing.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in dict.fromkeys(trackers) if name not in available]:
        packages = " ".join("'aim<4'" if name == "aim" else name for name in missing)  # Accelerate takes no later aim
        raise RecipeError(
            f"train.trackers: found {', '.join(map(repr, missing))}, not installed here; "
            f"pip install {packages}, or leave them out"
        )


def warn_about_missing_gpu(environ: Mapping[str, str], *, image_encoder: str) -> None:
    """Report that a run which is meant for a GPU runs on the CPU, unless the user asked for the CPU.

    The user asks for it by `accelerate launch --cpu`, ACCELERATE_USE_CPU=true or CUDA_VISIBLE_DEVICES=-1. An empty
    CUDA_VISIBLE_DEVICES does not count: schedulers set it where no GPU was requested.

    Args:
        environ: Environment of this process, which runs on the CPU.
        image_encoder: Image encoder of the recipe; empty if there is none.
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
            "NO GPU IS USED: this runs on the CPU although a GPU seems to be meant (%s). %s. On a CPU a model of a "
            "published size is tens to hundreds of times slower. Stop it and make a GPU available, or say that the CPU "
            "is meant: ACCELERATE_USE_CPU=true, or accelerate launch --cpu",
            ", ".join(asked), _why_none(visible),
        )  # fmt: skip


def warn_about_other_precision(environ: Mapping[str, str], precision: str) -> None:
    """Report a precision of `accelerate launch` that is not used, since the recipe's holds.

    Args:
        environ: Environment of this process.
        precision: That holds.
    """
    launched = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        logger.warning(
            "accelerate was started with mixed precision %s, which is not used: the precision here is %s (training has "
            "that of its recipe, train.precision; an evaluation has none)",
            launched, precision,
        )  # fmt: skip


def die_with_launcher() -> None:
    """Ask Linux to end this process when the launcher ends, even by SIGKILL.

    The launchers start their processes in sessions of their own. Without this, these would go on training after the
    launcher is killed, and the same command given again would make two runs in one folder. The launcher of one process
    does not pass SIGTERM on and dies of it: its process gets SIGTERM, so that the run can save. A process that no
    launcher started outlives its parent: that is a shell, which may end before the run.
    """
    if _is_launched(os.environ) and sys.platform == "linux":
        pr_set_pdeathsig = 1
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL if elastic else signal.SIGTERM)


def refuse_missing_processes(num_processes: int, environ: Mapping[str, str]) -> None:
    """Refuse to train alone where several were asked for.

    `accelerate launch --cpu --num_processes 2` starts one process and no other, and says nothing (accelerate 1.15).
    Its launcher for one process sets MASTER_ADDR exactly if more than one process or machine was asked for, but
    never WORLD_SIZE, which every launcher of several processes sets.

    Args:
        num_processes: That came up.
        environ: Of this process.

    Raises:
        TrainingError: With the command that does start several.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environ
    if num_processes == 1 and by_accelerate and "MASTER_ADDR" in environ and "WORLD_SIZE" not in environ:
        raise TrainingError(
            "found 1 process, but `accelerate launch` was asked for several: on a CPU it starts them only as "
            f"`{CPU_COMMAND}` (unset MASTER_ADDR if one process is meant)"
        )


def cpu_threads(environ: Mapping[str, str], *, num_cores: int, num_local: int) -> int:
    """Threads of this process: OMP_NUM_THREADS if a person set it, else the cores shared out evenly.

    Launchers set OMP_NUM_THREADS where it was not set: torchrun to 1, accelerate to 1 or to its own share of the
    machine's cores. That would leave most of a machine idle, or use cores that this process may not run on. So in a
    process that a launcher started, the variable counts only if the launcher's own environment or command line has
    it. Where these cannot be seen (outside Linux), any number but 1 counts.

    Args:
        environ: Of this process.
        num_cores: That this process may run on.
        num_local: Processes on this machine.
    """
    wanted = re.match(r"\s*([1-9][0-9]*)", environ.get("OMP_NUM_THREADS", ""))  # "4,2": 4, and 2 in nested regions
    if wanted:
        was_told = _launcher_was_told() if _is_launched(environ) else True
        if was_told or (was_told is None and int(wanted[1]) > 1):
            return int(wanted[1])
    return max(1, num_cores // num_local)


def _is_launched(environ: Mapping[str, str]) -> bool:
    """Whether torchrun or `accelerate launch` started this process: detected by variables that only launchers set."""
    return "TORCHELASTIC_RUN_ID" in environ or "ACCELERATE_DYNAMO_MODE" in environ


def _launcher_was_told() -> bool | None:
    """Whether the number of threads was given to the launcher, which is the parent; None: that cannot be seen."""
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
    """Have torch take the same sums in the same order each time, also with several threads.

    Else the gradient of an image that several sentences share is added up by the threads as they come (the backward
    pass of `features[image_index]`): equal runs, and a resumed one and an unbroken one, differ in the last bits.
    """
    torch.use_deterministic_algorithms(True)
    # A help to find faults, at a price for each tensor. (The module stands behind a class that type checkers miss.)
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
