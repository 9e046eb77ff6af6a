"""Models: `encode_image`, `encode_text`, `decode`, composed here from a recipe's `[model]` section."""

from torch import nn

from refseg.errors import RecipeError
from refseg.model_config import FCNetConfig, ModelConfig
from refseg.models.crformer import build_crformer
from refseg.models.cris import build_cris
from refseg.models.decoders import build_codes, build_decoder_layers, native_grid
from refseg.models.encoders import build_image_encoder, build_text_encoder
from refseg.models.fcnet import EmphasisCalibration, EmphasisGeneration, FCNet
from refseg.models.lts import build_lts
from refseg.models.mask_decoder import MaskHead, PlainMaskHead
from refseg.models.model import SegmentationModel
from refseg.models.neck import ConvNormReLU, VisionNeck


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
        case "lts":
            return build_lts(config, input_size=input_size)
        case "cris":
            return build_cris(config, input_size=input_size)
        case "crformer":
            return build_crformer(config, input_size=input_size)
    raise RecipeError(f"model.name: {config.name} is not built yet")


def build_fcnet(config: FCNetConfig, *, input_size: tuple[int, int]) -> FCNet:
    """Build FCNet with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` the model is made for, multiples of 32: FCNet's native grid is a sixteenth of it.

    Raises:
        RecipeError: If a feature of CLIP's is to be taken as it is and is not as wide as the decoder.
    """
    image_encoder = build_image_encoder(config.image_encoder, input_size)
    text_encoder = build_text_encoder(config.image_encoder, config.dim)
    if not config.egm and text_encoder.width != config.dim:
        raise RecipeError(
            f"model.dim: found {config.dim}, expected {text_encoder.width}: "
            "without egm the decoder hears the words as they are"
        )
    keeps_sentence = config.sentence_projection == "clip"
    if keeps_sentence and text_encoder.output_dim != config.dim:
        raise RecipeError(
            f'model.sentence_projection: found "clip", whose feature is {text_encoder.output_dim} wide beside '
            f'{config.image_encoder}; expected "linear", or model.dim = {text_encoder.output_dim}'
        )
    # Modules are made in this order: it decides which random weights each gets.
    return FCNet(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        neck=VisionNeck(in_dims=image_encoder.channels, dim=config.dim),
        emphasis_generation=EmphasisGeneration(
            grid=native_grid(input_size),
            word_dim=text_encoder.width,
            dim=config.dim,
            num_heads=config.egm_heads or config.num_heads,
            word_code=config.egm_word_code == "sine",
        )
        if config.egm
        else None,
        emphasis_calibration=EmphasisCalibration(
            dim=config.dim, num_heads=config.num_heads, concat=config.ecm_concat, alpha=config.alpha
        )
        if config.ecm
        else None,
        layers=build_decoder_layers(config),
        head=MaskHead(dim=config.dim) if config.head == "slim" else PlainMaskHead(dim=config.dim),
        key_conv=_build_key_conv(config) if config.egm else None,
        global_projection=nn.Linear(text_encoder.output_dim, config.dim) if config.ecm and not keeps_sentence else None,
        codes=build_codes(config, input_size),
    )


def _build_key_conv(config: FCNetConfig) -> nn.Module:
    if config.key_conv == "norm_relu":
        return ConvNormReLU(config.dim, config.num_key_channels, 3)
    return nn.Conv2d(config.dim, config.num_key_channels, 3, padding=1)
