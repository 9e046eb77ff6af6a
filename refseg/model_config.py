"""The recipe's `[model]` section: one class per architecture, told apart by `name`."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticKnownError

from refseg.addresses import parse_address
from refseg.errors import UsageError

ImageEncoderName = Literal["clip_resnet50", "clip_resnet101", "swin_base", "darknet53", "tiny"]


def _refuse_other_types(value: object) -> object:
    if type(value) is not int:
        raise PydanticKnownError("int_type")
    return value


OfWholeNumbers = BeforeValidator(_refuse_other_types)
"""Goes with a `Literal` of whole numbers: pydantic looks for equal values, and true and 1.0 equal 1."""


def _expand_address(value: str) -> str:
    try:
        return str(parse_address(value)) if value else value
    except UsageError as error:
        raise ValueError(str(error)) from error


Address = Annotated[str, AfterValidator(_expand_address)]
"""A path, in which `~` is expanded, or a URL; may be empty."""
Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FieldsAbove: TypeAlias = Any
"""pydantic's `ValidationInfo`, a protocol that cannot be checked at run time; `data` holds what is right by itself."""


class Section(BaseModel):
    """A section of a recipe: frozen; unknown keys are refused, and values of another type than TOML says they are.

    A whole number will do for a fraction, and a list for a tuple, which TOML has not. What two keys may not be together
    is checked with the one that stands below, if the other is right by itself: so such mistakes are listed with all
    others, which pydantic's validators of whole sections would not do.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class _AnyModel(Section):
    """What every architecture has."""

    image_encoder: ImageEncoderName
    """Image side: CLIP's ResNet-50 or -101, Swin-Base, DarkNet-53, or a small one for training on a CPU."""
    dim: Count = 512
    """Width of fused features, queries and decoder; a multiple of `num_heads`."""
    num_heads: Count = 8
    """Heads of every attention."""
    ffn_dim: Count = 2048
    """Hidden width of the decoder's feed-forward part."""
    dropout: Share = 0.1
    """Drop probability in the decoder, on attention weights too."""
    num_decoder_layers: Count = 3
    """Layers of the mask decoder."""
    extra_norms: bool = True
    """The three norms per decoder layer that CRIS's code has and FCNet's equation has not."""
    image_weights: Address = ""
    """Safetensors file the image encoder starts from, or `timm:` and a name of Swin-Base; empty: random."""
    text_weights: Address = ""
    """Safetensors file the text encoder starts from; empty: random."""
    random_start: bool = False
    """True: encoders without such a file start from random weights on purpose; else a run without them is refused."""

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, value: int, info: FieldsAbove) -> int:
        dim = info.data.get("dim", 0)
        if dim % value:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {value}")
        return value


class FCNetConfig(_AnyModel):
    """FCNet; defaults are the paper's."""

    name: Literal["fcnet"] = "fcnet"
    """Architecture."""
    num_key_channels: Count = 16
    """Channels of the key map, N_k: as many emphases of the expression are made."""
    egm: bool = True
    """Make emphases of the expression from the image; without them the words are the decoder's memory."""
    key_conv: Literal["plain", "norm_relu"] = "plain"
    """What makes the key map: a convolution alone, or with batch norm and ReLU."""
    egm_heads: Count | None = None
    """Heads of their attention; absent: `num_heads`. 1 gives the one map of emphases by words that the paper names."""
    egm_word_code: Literal["none", "sine"] = "none"
    """Position code on the words that emphases attend to."""
    ecm: bool = True
    """Weigh the emphases against the whole sentence."""
    ecm_concat: Literal["channel", "token"] = "channel"
    """How the sentence meets the emphases there: joined to each of them, or as tokens beside them."""
    alpha: Literal["linear", "sigmoid"] = "linear"
    """The weight of an emphasis: unbounded, or between 0 and 1."""
    sentence_projection: Literal["linear", "clip"] = "linear"
    """From CLIP's sentence feature to F_tg: one more linear map, or none (where CLIP's is `dim` wide)."""
    head: Literal["slim", "plain"] = "slim"
    """Pixel features to a mask: twice up-sampling and a convolution, or once."""

    @field_validator("ecm")
    @classmethod
    def _check_ecm(cls, value: bool, info: FieldsAbove) -> bool:
        if value and info.data.get("egm") is False:
            raise ValueError("weighs what egm makes: set egm = true, or both to false")
        return value

    @field_validator("egm_heads")
    @classmethod
    def _check_egm_heads(cls, value: int | None, info: FieldsAbove) -> int | None:
        dim = info.data.get("dim", 0)
        if value and dim % value:
            raise ValueError(f"dim {dim} is not a multiple of egm_heads {value}")
        return value

    @field_validator("key_conv", "egm_heads", "egm_word_code", "ecm_concat", "alpha", "sentence_projection")
    @classmethod
    def _check_idle(cls, value: int | str | None, info: FieldsAbove) -> int | str | None:
        key = str(info.field_name)
        part = "egm" if key in ("key_conv", "egm_heads", "egm_word_code") else "ecm"
        if value != cls.model_fields[key].default and info.data.get(part) is False:
            raise ValueError(f"no meaning with {part} = false; leave it out")
        return value


class CRFormerConfig(_AnyModel):
    """CRFormer; what its abstract leaves open is ours."""

    name: Literal["crformer"]
    """Architecture."""
    num_queries: Count = 16
    """Language queries, N_q, made from the image."""
    fusion: bool = True
    """Fuse language into the image encoder (VLF)."""
    calibration: bool = True
    """Make new queries after each decoder layer; without it the first ones serve all layers."""
    residual: bool = True
    """Add new queries to those before; without it they replace them."""
    reconstruction_weight: Weight = 0.1
    """Weight of the language reconstruction loss; 0: the module is not built."""
    reconstruction_positions: Count = 22
    """Tokens of the longest sentence that can be rebuilt; at least the recipe's `data.num_tokens`."""

    @field_validator("residual")
    @classmethod
    def _check_residual(cls, value: bool, info: FieldsAbove) -> bool:
        if not value and info.data.get("calibration") is False:
            raise ValueError("no meaning with calibration = false; leave it out")
        return value


class LTSConfig(_AnyModel):
    """LTS ("Locate then Segment"); what its abstract leaves open is ours."""

    name: Literal["lts"]
    """Architecture."""
    num_decoder_layers: Count = 1
    """Layers of the transformer that locates."""
    text_encoder: Literal["clip", "bigru"] = "clip"
    """CLIP's transformer, or the paper's bidirectional GRU, over learned vectors of CLIP's word pieces."""
    locator: Literal["filter", "transformer"] = "filter"
    """How the sentence finds its object: a filter made from it, or pixels that attend to its words."""
    filter_size: Annotated[Literal[1, 3], OfWholeNumbers] = 1
    """Side of the locator's filter."""
    location_target: Literal["area", "gaussian", "ellipse"] = "area"
    """What the position prior learns: the mask's share of each cell, or a blob on the mask's box."""
    location_weight: Weight = 0.1
    """Weight of the locator's loss."""

    @field_validator("filter_size")
    @classmethod
    def _check_filter(cls, value: int, info: FieldsAbove) -> int:
        if value != 1 and info.data.get("locator") == "transformer":
            raise ValueError('is the filter\'s: leave it out with locator = "transformer"')
        return value

    @field_validator("text_encoder")
    @classmethod
    def _check_text_weights(cls, value: str, info: FieldsAbove) -> str:
        if value == "bigru" and info.data.get("text_weights"):
            raise ValueError('leave text_weights out: a GRU (text_encoder = "bigru") has no published weights')
        return value


class CRISConfig(_AnyModel):
    """A CRIS-style baseline: its gated neck, decoder and projector in this framework."""

    name: Literal["cris"]
    """Architecture."""


def _name_of(section: Any) -> Any:
    """FCNet where no name is given: recipes need not say it."""
    return section.get("name", "fcnet") if isinstance(section, dict) else getattr(section, "name", None)


ModelConfig = Annotated[
    Annotated[FCNetConfig, Tag("fcnet")]
    | Annotated[CRFormerConfig, Tag("crformer")]
    | Annotated[LTSConfig, Tag("lts")]
    | Annotated[CRISConfig, Tag("cris")],
    Discriminator(
        _name_of,
        custom_error_type="unknown_model",
        custom_error_message="expected one of fcnet, crformer, lts, cris",
    ),
]
MODEL_CONFIGS: dict[str, type[Section]] = {
    "fcnet": FCNetConfig,
    "crformer": CRFormerConfig,
    "lts": LTSConfig,
    "cris": CRISConfig,
}
"""The section's class of each architecture."""
