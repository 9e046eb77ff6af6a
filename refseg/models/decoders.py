"""The parts of a decoder that a recipe describes alike for all models."""

from refseg.model_config import ModelConfig
from refseg.models.mask_decoder import DecoderLayer, SineCodes


def build_decoder_layers(config: ModelConfig) -> list[DecoderLayer]:
    """As many layers as the recipe says, with random weights."""
    return [
        DecoderLayer(
            dim=config.dim,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            dropout=config.dropout,
            extra_norms=config.extra_norms,
        )
        for _ in range(config.num_decoder_layers)
    ]


def native_grid(input_size: tuple[int, int]) -> tuple[int, int]:
    """`(h, w)` of the features a decoder sees: a sixteenth of the input."""
    return input_size[0] // 16, input_size[1] // 16


def build_codes(config: ModelConfig, input_size: tuple[int, int]) -> SineCodes:
    """Position codes of the native grid."""
    return SineCodes(grid=native_grid(input_size), dim=config.dim)
