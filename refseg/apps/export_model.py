"""Exports a model as two programs that run without this package.

The first program computes `encode_image`, from images to an image state. The second program computes `encode_text` and
`decode`, from an image state and sentences to mask logits. A server can therefore keep the state of an image and run
only the second program for each sentence. Batch norms are folded.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from refseg.addresses import local_path
from refseg.aside import folder_aside
from refseg.config import Recipe
from refseg.errors import RefsegError, UsageError
from refseg.models.folding import fold_batch_norms
from refseg.models.model import SegmentationModel
from refseg.training.checkpoint import load_checkpoint

ExportFormat = Literal["onnx", "torch"]
_FACTS = "model.json"
_LARGEST_ERROR = 1e-3  # of a logit, compared with the model


class _ImageHalf(nn.Module):
    """Computes the tensors of the image state from images, in the order of the state's fields."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_image(images))


class _SentenceHalf(nn.Module):
    """Computes mask logits from the tensors of an image state and sentences."""

    def __init__(self, model: SegmentationModel, state_type: type[Any]) -> None:
        super().__init__()
        self.model = model
        self.state_type = state_type

    def forward(
        self,
        image_state: tuple[Tensor, ...],
        token_ids: Int64[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        image_index: Int64[Tensor, "B"],
    ) -> Float[Tensor, "B 1 h4 w4"]:
        return self.model.decode(
            self.state_type(*image_state), self.model.encode_text(token_ids, token_mask), image_index
        )


def export_checkpoint(checkpoint: Path, out: Path, *, kind: ExportFormat = "torch") -> float:
    """Write a checkpoint's model as `export_model` does.

    Args:
        checkpoint: A run's folder, or a checkpoint's.
        out: Folder to make.
        kind: ONNX, or torch.export's own format.

    Returns:
        The largest difference of a mask logit between the written programs and the model.

    Raises:
        CheckpointError: If there is no sound checkpoint.
        UsageError: If `out` exists, or the packages for ONNX are missing.
    """
    loaded = load_checkpoint(checkpoint)
    return export_model(loaded.model, loaded.recipe, out, kind=kind)


def export_model(model: SegmentationModel, recipe: Recipe, out: Path, *, kind: ExportFormat) -> float:
    """Write both programs and `model.json`, run the programs, and compare their output with the model's.

    Args:
        model: The model, in evaluation mode.
        recipe: Recipe of the model.
        out: Folder to make, with `image.onnx` and `sentence.onnx`, or `image.pt2` and `sentence.pt2`.
        kind: `onnx`, or `torch` for `torch.export`.

    Returns:
        The largest difference of a mask logit between the written programs and the model.

    Raises:
        UsageError: If `out` exists, or the packages for ONNX are missing.
    """
    out = local_path(out)
    if out.exists():
        raise UsageError(f"{out}: already there; choose another --out")
    if kind == "onnx":
        _require_onnx()
    model = fold_batch_norms(model).cpu()
    height, width = recipe.data.input_size
    # Two of everything, since a dimension of 1 would be exported as a constant.
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    token_ids = torch.tensor([[49406, 736, 1449, 49407], [49406, 2368, 49407, 0]])
    token_mask = torch.tensor([[True] * 4, [True, True, True, False]])
    image_index = torch.tensor([1, 0])
    with folder_aside(out, is_shared=True) as part:
        with torch.no_grad():
            state_type = type(model.encode_image(images))
            expected = model(images, token_ids, token_mask, image_index).mask_logits
            image_half, sentence_half = _ImageHalf(model), _SentenceHalf(model, state_type)
            tensors = image_half(images)
            sentence_inputs = (tensors, token_ids, token_mask, image_index)
            num_images, num_sentences = torch.export.Dim("images"), torch.export.Dim("sentences")
            length = torch.export.Dim("tokens", min=3, max=77)
            image_program = torch.export.export(image_half, (images,), dynamic_shapes=({0: num_images},))
            sentence_program = torch.export.export(
                sentence_half,
                sentence_inputs,
                dynamic_shapes=(
                    tuple({0: num_images} for _ in tensors),
                    {0: num_sentences, 1: length},
                    {0: num_sentences, 1: length},
                    {0: num_sentences},
                ),
            )
            if kind == "torch":
                found = _write_torch(part, image_program, sentence_program, images, sentence_inputs)
            else:
                found = _write_onnx(part, image_program, sentence_program, images, sentence_inputs)
        (part / _FACTS).write_text(
            json.dumps(_facts(model, recipe, kind, len(tensors)), indent=1) + "\n", encoding="utf-8"
        )
        error = float((found - expected).abs().max())
        if not error < _LARGEST_ERROR:
            raise RefsegError(
                f"{out}: the written programs differ from the model by {error:.2g}; nothing is kept of them"
            )
    return error


def _write_torch(
    folder: Path,
    image_program: torch.export.ExportedProgram,
    sentence_program: torch.export.ExportedProgram,
    images: Tensor,
    sentence_inputs: tuple[Any, ...],
) -> Tensor:
    torch.export.save(image_program, folder / "image.pt2")
    torch.export.save(sentence_program, folder / "sentence.pt2")
    state = torch.export.load(folder / "image.pt2").module()(images)
    found: Tensor = torch.export.load(folder / "sentence.pt2").module()(state, *sentence_inputs[1:])
    return found


def _write_onnx(
    folder: Path,
    image_program: torch.export.ExportedProgram,
    sentence_program: torch.export.ExportedProgram,
    images: Tensor,
    sentence_inputs: tuple[Any, ...],
) -> Tensor:
    import onnxruntime

    num_states = len(sentence_inputs[0])
    states = [f"state_{number}" for number in range(num_states)]
    names = {
        "image": (["images"], states),
        "sentence": ([*states, "token_ids", "token_mask", "image_index"], ["mask_logits"]),
    }
    for name, program in (("image", image_program), ("sentence", sentence_program)):
        inputs, outputs = names[name]
        torch.onnx.export(
            program, f=folder / f"{name}.onnx", dynamo=True, input_names=inputs, output_names=outputs, verbose=False
        )

    def run(name: str, values: list[Tensor]) -> list[Tensor]:
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        feed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), values, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return run("sentence", [*run("image", [images]), *sentence_inputs[1:]])[0]


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"ONNX needs packages that are missing ({error.name}): pip install 'refseg[onnx]'") from error


def _facts(model: SegmentationModel, recipe: Recipe, kind: ExportFormat, num_states: int) -> dict[str, Any]:
    """Return the description of the programs' inputs that a user needs."""
    return {
        "format": kind,
        "image_inputs": ["images (I, 3, H, W) float32, (RGB / 255 - mean) / std"],
        "sentence_inputs": [
            f"{num_states} tensors of the image state, as the image program gives them",
            "token_ids (B, L) int64: CLIP BPE with SOS and EOS, zeros after",
            "token_mask (B, L) bool: True from SOS to EOS",
            "image_index (B) int64: the image of each sentence",
        ],
        "output": "mask_logits (B, 1, H/4, W/4): sigmoid gives probabilities",
        "input_size": list(recipe.data.input_size),
        "geometry": recipe.data.geometry,
        "num_tokens": recipe.data.num_tokens,
        "mean": list(model.image_mean),
        "std": list(model.image_std),
        "recipe": recipe.to_dict(),
    }
