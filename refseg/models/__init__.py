"""Models: `encode_image`, `encode_text`, `decode`, composed here from a recipe's `[model]` section."""

from torch import nn

from refseg.config import ModelConfig
from refseg.errors import RecipeError
from refseg.models.fcnet import EmphasisCalibration, EmphasisGeneration, FCNet
from refseg.models.image_encoder import ClipResNet, ImageEncoder, SwinBase, TinyResNet
from refseg.models.mask_decoder import DecoderLayer, MaskHead
from refseg.models.neck import VisionNeck
from refseg.models.text_encoder import ClipTextEncoder


def build_model(config: ModelConfig, *, input_size: tuple[int, int]) -> FCNet:
    """Build a model with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` the model is made for, multiples of 32: FCNet's native grid is a sixteenth of it.

    Raises:
        RecipeError: If the decoder is to hear words of another width than its own.
    """
    image_encoder = _image_encoder(config.image_encoder, input_size)
    text_encoder = _text_encoder(config.image_encoder, config.dim)
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


def _image_encoder(name: str, input_size: tuple[int, int]) -> ImageEncoder:
    match name:
        case "clip_resnet50":
            return ClipResNet(depth=50)
        case "clip_resnet101":
            return ClipResNet(depth=101)
        case "swin_base":
            return SwinBase(input_size=input_size)
        case "tiny":
            return TinyResNet()
    raise ValueError(f"no image encoder is named {name!r}")


def _text_encoder(image_encoder: str, dim: int) -> ClipTextEncoder:
    """The text transformer that goes with an image encoder: FCNet does not name Swin's, we take ResNet-101's."""
    match image_encoder:
        case "tiny":
            encoder = ClipTextEncoder(width=dim, num_layers=2, num_heads=4, output_dim=dim)
            # Random words, far apart, and kept so. From CLIP's small start (0.02) a large learning rate moves all
            # colours alike before the pixels tell them apart, and then neither side ever does.
            nn.init.normal_(encoder.token_embedding.weight)
            encoder.token_embedding.requires_grad_(False)
            return encoder
        case "clip_resnet50":
            return ClipTextEncoder(output_dim=1024)
    return ClipTextEncoder(output_dim=512)
