"""Lists parameters and operations of the models, together with the published figures."""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from pydantic import TypeAdapter

from refseg.apps.options import CostOptions
from refseg.model_config import MODEL_CONFIGS, ImageEncoderName, ModelConfig
from refseg.models import cost as costs

PUBLISHED = {
    ("fcnet", "clip_resnet101"): (
        "190.04 M, 84.05 G",
        "FCNet, Table 5. The operations fit ResNet-101 at 480; the parameters are those of our Swin-Base.",
    ),
    ("cris", "clip_resnet101"): (
        "188.85 M, 79.45 G",
        "CRIS's row of FCNet's Table 5. The operations fit ResNet-101 at 416; the parameters fit CRIS with Swin-Base.",
    ),
    ("cris", "clip_resnet50"): ("146.85 M", "CRIS's own count of parameters, with the token embedding."),
}
"""Published figures, and the configurations whose counts they match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One model with one encoder at one size.

    Attributes:
        model: Name of the architecture.
        image_encoder: Name of the image encoder.
        input_size: Side of the square input in pixels.
        cost: Parameters and multiply-accumulates.
    """

    model: str
    image_encoder: str
    input_size: int
    cost: costs.Cost

    @property
    def published(self) -> str | None:
        """Published figures of this model with this encoder. None if there are none."""
        return PUBLISHED.get((self.model, self.image_encoder), (None,))[0]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON types."""
        return {
            "model": self.model,
            "image_encoder": self.image_encoder,
            "input_size": self.input_size,
            "total_parameters": self.cost.total_parameters,
            "total_macs": self.cost.total_macs,
            **asdict(self.cost),
            "published": self.published,
        }


def count_costs(options: CostOptions) -> list[CostRow]:
    """Count the cost of each chosen model with each encoder at each size. No weights are allocated."""
    section: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
    rows = []
    for model in options.models or MODEL_CONFIGS:
        for encoder in options.encoders or get_args(ImageEncoderName):
            config = section.validate_python({"name": model, "image_encoder": encoder})
            for side in options.input_sizes:
                found = costs.count_cost(config, input_size=(side, side), num_tokens=options.num_tokens)
                rows.append(CostRow(model=model, image_encoder=encoder, input_size=side, cost=found))
    return rows
