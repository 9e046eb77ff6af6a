"""Models: `encode_image`, `encode_text`, `decode`, composed here from a recipe's `[model]` section."""

from refseg.errors import RecipeError
from refseg.model_config import FCNetConfig, ModelConfig
from refseg.models.encoders import build_image_encoder, build_text_encoder
from refseg.models.fcnet import EmphasisCalibration, EmphasisGeneration, FCNet
from refseg.models.mask_decoder import DecoderLayer, MaskHead
from refseg.models.model import SegmentationModel
from refseg.models.neck import VisionNeck


def build_model(config: ModelConfig, *, input_size: tuple[int, int]) -> SegmentationModel:
    """Build a model with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` the model is made for, multiples of 32.

    Raises:
        RecipeError: If its parts do not fit each other.
    """
    match config.name:
        case "fcnet":
            return build_fcnet(config, input_size=input_size)
    raise RecipeError(f"model.name: {config.name} is not built yet")


def build_fcnet(config: FCNetConfig, *, input_size: tuple[int, int]) -> FCNet:
    """Build FCNet with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` the model is made for, multiples of 32: FCNet's native grid is a sixteenth of it.

    Raises:
        RecipeError: If the decoder is to hear words of another width than its own.
    """
    image_encoder = build_image_encoder(config.image_encoder, input_size)
    text_encoder = build_text_encoder(config.image_encoder, config.dim)
    if not config.egm and text_encoder.width != config.dim:
        raise RecipeError(
            f"model.dim: found {config.dim}, expected {text_encoder.width}: "
            "without egm the decoder hears the words as they are"
        )
    grid = (input_size[0] // 16, input_size[1] // 16)
    return FCNet(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        neck=VisionNeck(in_dims=image_encoder.channels, dim=config.dim),
        emphasis_generation=EmphasisGeneration(
            num_positions=grid[0] * grid[1],
            word_dim=text_encoder.width,
            dim=config.dim,
            num_heads=config.num_heads,
        )
        if config.egm
        else None,
        emphasis_calibration=EmphasisCalibration(dim=config.dim, num_heads=config.num_heads) if config.ecm else None,
        layers=[
            DecoderLayer(
                dim=config.dim,
                num_heads=config.num_heads,
                ffn_dim=config.ffn_dim,
                dropout=config.dropout,
                extra_norms=config.extra_norms,
            )
            for _ in range(config.num_decoder_layers)
        ],
        head=MaskHead(dim=config.dim),
        dim=config.dim,
        num_key_channels=config.num_key_channels,
        native_grid=grid,
    )
