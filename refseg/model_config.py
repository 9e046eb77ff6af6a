"""The recipe's `[model]` section: one class per architecture, chosen by the key `name`."""

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


WholeNumbersOnly = BeforeValidator(_refuse_other_types)
"""Restricts a `Literal` of whole numbers to ints: pydantic compares by equality, and both true and 1.0 equal 1."""


def _expand_address(value: str) -> str:
    try:
        return str(parse_address(value)) if value else value
    except UsageError as error:
        raise ValueError(str(error)) from error


Address = Annotated[str, AfterValidator(_expand_address)]
"""A path, in which `~` is expanded, or a URL, or the empty text."""
Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FieldsAbove: TypeAlias = Any
"""Stands for pydantic's `ValidationInfo`, a protocol that cannot be checked at run time. Its `data` holds the fields
declared above the validated one whose own values are valid."""


class Section(BaseModel):
    """A section of a recipe: immutable; unknown keys and values of another TOML type are refused.

    A whole number is accepted for a fraction, and a list for a tuple, because TOML has no tuples. A rule about two
    keys is checked by the validator of the lower one, if the upper one is valid by itself. Such a mistake is then
    listed together with all others; pydantic's validators of whole sections run only if all keys are valid.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class _CommonKeys(Section):
    """The keys that every architecture has."""

    image_encoder: ImageEncoderName
    """Image encoder: CLIP's ResNet-50 or -101, Swin-Base, DarkNet-53, or a tiny one for training on a CPU."""
    dim: Count = 512
    """Width of fused features, queries and decoder; a multiple of `num_heads`."""
    num_heads: Count = 8
    """Number of heads of every attention."""
    ffn_dim: Count = 2048
    """Hidden width of the decoder's feed-forward network."""
    dropout: Share = 0.1
    """Dropout probability in the decoder, also of its attention weights."""
    num_decoder_layers: Count = 3
    """Number of layers of the mask decoder."""
    extra_norms: bool = True
    """Use the three norms per decoder layer that CRIS's code has; FCNet's equation does not have them."""
    image_weights: Address = ""
    """Safetensors file that the image encoder starts from, or `timm:` and a Swin-Base name; empty: random weights."""
    text_weights: Address = ""
    """Safetensors file that the text encoder starts from; empty: random weights."""
    random_start: bool = False
    """Allow encoders without a weight file to start from random weights; else such a run is refused."""

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, value: int, info: FieldsAbove) -> int:
        dim = info.data.get("dim", 0)
        if dim % value:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {value}")
        return value


class FCNetConfig(_CommonKeys):
    """FCNet; the defaults are those of its paper."""

    name: Literal["fcnet"] = "fcnet"
    """Name of the architecture."""
    num_key_channels: Count = 16
    """Number of channels of the key map, N_k, which is the number of emphases of the expression."""
    egm: bool = True
    """Generate emphases of the expression from the image (EGM); false: the decoder attends to the words directly."""
    key_conv: Literal["plain", "norm_relu"] = "plain"
    """Layer that makes the key map: a convolution alone, or one with batch norm and ReLU."""
    egm_heads: Count | None = None
    """Attention heads of the EGM; absent: `num_heads`. 1 gives a single map of emphases by words, as in the paper."""
    egm_word_code: Literal["none", "sine"] = "none"
    """Position code that is added to the words in the EGM."""
    ecm: bool = True
    """Weight the emphases by comparing them with the whole sentence (ECM)."""
    ecm_concat: Literal["channel", "token"] = "channel"
    """How the ECM joins sentence and emphases: along the channels of each emphasis, or as additional tokens."""
    alpha: Literal["linear", "sigmoid"] = "linear"
    """Range of an emphasis's weight: unbounded (`linear`), or between 0 and 1 (`sigmoid`)."""
    sentence_projection: Literal["linear", "clip"] = "linear"
    """Map from CLIP's sentence feature to F_tg: a linear layer, or none (`clip`; CLIP's feature must be `dim` wide)."""
    head: Literal["slim", "plain"] = "slim"
    """Mask head: two steps of up-sampling and convolution (`slim`), or one (`plain`)."""

    @field_validator("ecm")
    @classmethod
    def _check_ecm(cls, value: bool, info: FieldsAbove) -> bool:
        if value and info.data.get("egm") is False:
            raise ValueError("weights the emphases that egm generates: set egm = true, or both to false")
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
            raise ValueError(f"has no effect with {part} = false; leave it out")
        return value


class CRFormerConfig(_CommonKeys):
    """CRFormer; design choices that its abstract leaves open were made by this project."""

    name: Literal["crformer"]
    """Name of the architecture."""
    num_queries: Count = 16
    """Number of language queries, N_q, which are generated from the image."""
    fusion: bool = True
    """Fuse language into the image encoder (VLF)."""
    calibration: bool = True
    """Generate new queries after each decoder layer; false: all layers use the first queries."""
    residual: bool = True
    """Add the new queries to the previous ones; false: the new ones replace them."""
    reconstruction_weight: Weight = 0.1
    """Weight of the language reconstruction loss; 0: the module is not built."""
    reconstruction_positions: Count = 22
    """Tokens of the longest sentence that can be reconstructed; at least the recipe's `data.num_tokens`."""

    @field_validator("residual")
    @classmethod
    def _check_residual(cls, value: bool, info: FieldsAbove) -> bool:
        if not value and info.data.get("calibration") is False:
            raise ValueError("has no effect with calibration = false; leave it out")
        return value


class LTSConfig(_CommonKeys):
    """LTS ("Locate then Segment"); design choices that its abstract leaves open were made by this project."""

    name: Literal["lts"]
    """Name of the architecture."""
    num_decoder_layers: Count = 1
    """Number of layers of the transformer locator."""
    text_encoder: Literal["clip", "bigru"] = "clip"
    """Text encoder: CLIP's transformer, or the paper's bidirectional GRU over learned vectors of CLIP's word pieces."""
    locator: Literal["filter", "transformer"] = "filter"
    """Locator: a filter generated from the sentence, or a transformer whose pixels attend to the words."""
    filter_size: Annotated[Literal[1, 3], WholeNumbersOnly] = 1
    """Side of the locator's filter in feature cells."""
    location_target: Literal["area", "gaussian", "ellipse"] = "area"
    """Target of the position prior: the mask's share of each cell, or a blob that fits the mask's box."""
    location_weight: Weight = 0.1
    """Weight of the locator's loss."""

    @field_validator("filter_size")
    @classmethod
    def _check_filter(cls, value: int, info: FieldsAbove) -> int:
        if value != 1 and info.data.get("locator") == "transformer":
            raise ValueError('applies only to locator = "filter"; leave it out with locator = "transformer"')
        return value

    @field_validator("text_encoder")
    @classmethod
    def _check_text_weights(cls, value: str, info: FieldsAbove) -> str:
        if value == "bigru" and info.data.get("text_weights"):
            raise ValueError('leave text_weights out: a GRU (text_encoder = "bigru") has no published weights')
        return value


class CRISConfig(_CommonKeys):
    """A baseline in the style of CRIS: CRIS's gated neck, decoder and projector in this framework."""

    name: Literal["cris"]
    """Name of the architecture."""


def _name_of(section: Any) -> Any:
    """Return the architecture's name; a recipe without `name` means FCNet."""
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
"""The class of the `[model]` section for each architecture."""
