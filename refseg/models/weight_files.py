"""Lists the addresses and hashes of published weight files, and writes this project's weight files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

_OPENAI = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFile:
    """One of OpenAI's CLIP archives.

    Attributes:
        model: OpenAI's name of the model.
        file_name: Name of the archive.
        sha256: SHA-256 of the archive in hex.
    """

    model: str
    file_name: str
    sha256: str

    @property
    def address(self) -> str:
        """URL of the archive at OpenAI. The URL contains the hash."""
        return f"{_OPENAI}/{self.sha256}/{self.file_name}"


CLIP_FILES = {
    "RN50": ClipFile(
        model="RN50", file_name="RN50.pt", sha256="afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
    ),
    "RN101": ClipFile(
        model="RN101", file_name="RN101.pt", sha256="8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"
    ),
    "ViT-B/16": ClipFile(
        model="ViT-B/16",
        file_name="ViT-B-16.pt",
        sha256="5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    ),
}
"""OpenAI's archives by the name of the model."""

SWIN_NAMES = (
    "swin_base_patch4_window12_384.ms_in22k",
    "swin_base_patch4_window12_384.ms_in22k_ft_in1k",
    "swin_base_patch4_window12_384.ms_in1k",
)
"""timm's names of the Swin-Base weights that fit the encoder; LAVT starts from the first one."""


def swin_repository(name: str) -> str:
    """Return the Hugging Face repository of one of `SWIN_NAMES`."""
    return f"timm/{name}"


def swin_address(name: str) -> str:
    """Return the URL from which the file of one of `SWIN_NAMES` can be downloaded by hand."""
    return f"https://huggingface.co/{swin_repository(name)}/resolve/main/model.safetensors"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(path: Path, weights: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors from any device to a safetensors file.

    Args:
        path: Path of the file. It must not exist.
        weights: Tensors by name, for example a state dict.
        metadata: Additional texts for the file's header.

    Raises:
        OSError, SafetensorError: If the file cannot be written.
    """
    path.touch()
    permissions = path.stat().st_mode
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(permissions)  # safetensors makes a file that only its owner can read
