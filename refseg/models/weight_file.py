"""Safetensors files, written with the rights that any other new file has."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_weights(path: Path, weights: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, from whatever device they are on.

    Args:
        path: A file that is not there yet.
        weights: For example a state dict.
        metadata: For the file's head.

    Raises:
        OSError, SafetensorError: If the disk refuses.
    """
    path.touch()
    rights = path.stat().st_mode
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(rights)  # safetensors gives its files to their owner alone
