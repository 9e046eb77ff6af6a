"""Counts the parameters and multiply-accumulates of a model, by part and by what sentences of an image share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from refseg.model_config import ModelConfig
from refseg.models import build_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one image with one sentence, by part. A part is a child module of the model.

    Attributes:
        parameters: Number of parameters of each part. Every tensor counts once, and the token embedding is included
            (CRIS's convention).
        macs: Multiply-accumulates of each part. Convolutions, linear layers and both products of every attention are
            counted. Elementwise operations, norms and resizing are not counted. `other` counts the operations outside
            any part.
        image_macs: Multiply-accumulates that are done once for each image.
        text_macs: Multiply-accumulates that are done once for each sentence and do not depend on the image.
        expression_macs: Multiply-accumulates that are done for each pair of an image and a sentence.
    """

    parameters: dict[str, int]
    macs: dict[str, int]
    image_macs: int
    text_macs: int
    expression_macs: int

    @property
    def total_parameters(self) -> int:
        """Number of parameters of all parts."""
        return sum(self.parameters.values())

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of one image with one sentence."""
        return self.image_macs + self.text_macs + self.expression_macs

    def macs_per_expression(self, expressions_per_image: float) -> float:
        """Return the multiply-accumulates of one sentence when `expressions_per_image` sentences share an image."""
        return self.image_macs / expressions_per_image + self.text_macs + self.expression_macs


def count_cost(config: ModelConfig, *, input_size: tuple[int, int], num_tokens: int) -> Cost:
    """Count the cost of a model on fake tensors. No weights are allocated and nothing is computed.

    Source: PyTorch's FLOP counter, where two FLOP are one multiply-accumulate. It cannot count fused attention on a
    CPU, so attention runs in its unfused form here.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` in pixels, multiples of 32.
        num_tokens: Number of token ids of the sentence, SOS and EOS included.

    Raises:
        RecipeError: If the model's parts do not fit each other.
    """
    with torch.device("meta"):
        model = build_model(config, input_size=input_size).eval()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    parameters = {name: count for name, count in counts.items() if count}
    model.to_empty(device="cpu")  # reserves address space; no page is ever written
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        images = torch.zeros(1, 3, *input_size)
        token_ids = torch.zeros(1, num_tokens, dtype=torch.int64)
        token_mask = torch.ones(1, num_tokens, dtype=torch.bool)
        image_index = torch.zeros(1, dtype=torch.int64)
        counter = FlopCounterMode(display=False)
        flop: dict[str, int] = {}
        for step in ("encode_image", "encode_text", "decode_all"):  # `forward` calls these three methods
            setattr(model, step, _counted(getattr(model, step), step, counter, flop))
        with counter:
            model(images, token_ids, token_mask, image_index)
    macs = _by_part(
        {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}, list(parameters)
    )
    return Cost(
        parameters=parameters,
        macs={part: count // 2 for part, count in macs.items()},
        image_macs=flop["encode_image"] // 2,
        text_macs=flop["encode_text"] // 2,
        expression_macs=flop["decode_all"] // 2,
    )


def _counted(
    function: Callable[..., Any], name: str, counter: FlopCounterMode, flop: dict[str, int]
) -> Callable[..., Any]:
    """Wrap a function so that each call stores its number of FLOP in `flop[name]`."""

    def run(*args: Any) -> Any:
        before = counter.get_total_flops()
        result = function(*args)
        flop[name] = counter.get_total_flops() - before
        return result

    return run


def _by_part(flop: dict[str, int], parts: list[str]) -> dict[str, int]:
    """Sum the counts of the called modules by the child of the model that contains them.

    A `ModuleList` is never called, so the counter has no entry for it. The sum therefore uses the outermost called
    modules. For example, `layers.0` is used and `layers.0.attention` is not, because the first includes the second.
    """
    total = flop["Global"]
    inside = {tuple(name.split(".")[1:]): count for name, count in flop.items() if "." in name}
    outermost = {path for path in inside if not any(path[:depth] in inside for depth in range(1, len(path)))}
    sums = {part: sum(inside[path] for path in outermost if path[0] == part) for part in parts}
    return {**sums, "other": total - sum(sums.values())}
