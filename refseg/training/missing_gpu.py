"""Warnings where a run was started for a GPU and none can be used, or for a precision that the recipe does not have."""

import logging
import re
from collections.abc import Mapping

import torch

logger = logging.getLogger(__name__)

SMALL_ENCODERS = {"", "tiny"}
"""Image encoders made for a CPU; empty: the model is not known."""


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


def _why_none(visible: str | None) -> str:
    if torch.version.cuda is None:
        return "This torch was built without CUDA"
    if visible is not None and not visible.strip():
        return "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs"
    return "torch finds no GPU; `nvidia-smi` shows whether the driver does"
