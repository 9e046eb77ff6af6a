"""Loads published weights into the encoders. Every name in the file and in the encoder must be covered by a rule."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from refseg.errors import CheckpointError
from refseg.model_config import ModelConfig
from refseg.models.image_encoder import ClipResNet, SwinBase
from refseg.models.model import SegmentationModel
from refseg.models.text_encoder import ClipTextEncoder
from refseg.models.weight_files import CLIP_FILES, SWIN_NAMES, swin_address, swin_repository
from refseg.wording import counted

logger = logging.getLogger(__name__)

_CLIP_IMAGE = (
    (r"^visual\.conv([123])\.", r"backbone.stem_conv\1.conv."),
    (r"^visual\.bn([123])\.", r"backbone.stem_conv\1.bn."),
    (r"^visual\.layer([1-4])\.(\d+)\.(conv|bn)1\.", r"backbone.stages_\1.\2.conv1_1x1.\3."),
    (r"^visual\.layer([1-4])\.(\d+)\.(conv|bn)2\.", r"backbone.stages_\1.\2.conv2_kxk.\3."),
    (r"^visual\.layer([1-4])\.(\d+)\.(conv|bn)3\.", r"backbone.stages_\1.\2.conv3_1x1.\3."),
    (r"^visual\.layer([1-4])\.(\d+)\.downsample\.0\.", r"backbone.stages_\1.\2.shortcut.conv.conv."),
    (r"^visual\.layer([1-4])\.(\d+)\.downsample\.1\.", r"backbone.stages_\1.\2.shortcut.conv.bn."),
    (r"^visual\.attnpool\.", "attnpool."),
)
_CLIP_TEXT = (
    (r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"resblocks.\1.in_proj."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"resblocks.\1.out_proj."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.", r"resblocks.\1."),
    (r"^transformer\.resblocks\.", "resblocks."),
    (r"^(token_embedding\.|positional_embedding|ln_final\.|text_projection)", r"\1"),
)
_CLIP_IGNORED = r"^(logit_scale|input_resolution|context_length|vocab_size|attn_mask)$"
_TIMM_SWIN = (
    (r"^layers\.(\d)\.", r"backbone.layers_\1."),
    (r"^patch_embed\.", "backbone.patch_embed."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """Rules that map the names of a published file to those of an encoder.

    Attributes:
        renames: Patterns with replacements; the first pattern that matches a name decides.
        ignored: Pattern of names that the encoder does not use.
        new: Pattern of the encoder's names that may be missing in the file.
        remedy: Advice on how to get the right file, for error messages.
    """

    renames: tuple[tuple[str, str], ...]
    ignored: str
    new: str
    remedy: str


def load_pretrained(model: SegmentationModel, config: ModelConfig) -> None:
    """Load the weight files that a recipe names. An encoder without a file keeps random weights.

    `text_weights`, and `image_weights` of a CLIP ResNet, are safetensors files with OpenAI's names. One file holds
    both encoders; `refseg convert-weights clip` or `cris` makes it. `image_weights` of Swin-Base is a file with timm's
    names, which `refseg convert-weights lavt` makes, or timm's own `model.safetensors`. The latter is given by its path
    or as `timm:` with one of `SWIN_NAMES`; it is then taken from this machine's Hugging Face cache or downloaded.

    Raises:
        CheckpointError: If a file is missing or is not a safetensors file. If its names or shapes do not fit the
            encoder.
    """
    if config.image_weights:
        encoder = model.image_encoder
        if isinstance(encoder, ClipResNet):
            rules = _Rules(
                renames=_CLIP_IMAGE,
                ignored=rf"{_CLIP_IGNORED}|^(transformer|token_embedding|ln_final)\.|^(positional_embedding|text_projection)$",
                new=r"^attnpool\.connect\.",  # OpenAI's files do not hold CRIS's residual branch
                remedy=_clip_remedy(config),
            )
        elif isinstance(encoder, SwinBase):
            rules = _Rules(
                renames=_TIMM_SWIN,
                ignored=r"^(norm|head)\.|\.(attn_mask|relative_position_index)$",
                new=r"^norms\.",
                remedy=f'name it "timm:{SWIN_NAMES[0]}", or fetch {swin_address(SWIN_NAMES[0])} by hand',
            )
        else:
            raise CheckpointError(
                f"image_weights = {config.image_weights!r}: the {config.image_encoder} encoder has no published "
                "weights; leave it empty"
            )
        _load(encoder, _find(config.image_weights, encoder), rules)
    if config.text_weights:
        if not isinstance(model.text_encoder, ClipTextEncoder):
            raise CheckpointError(
                f"text_weights = {config.text_weights!r}: a {type(model.text_encoder).__name__} has no published "
                "weights; leave it empty"
            )
        rules = _Rules(
            renames=_CLIP_TEXT, ignored=rf"{_CLIP_IGNORED}|^visual\.", new=r"^$", remedy=_clip_remedy(config)
        )
        _load(model.text_encoder, Path(config.text_weights), rules)


def _clip_remedy(config: ModelConfig) -> str:
    """Describe how to get the CLIP file for an image encoder. Swin uses the text encoder of ResNet-101's file."""
    file = CLIP_FILES["RN50" if config.image_encoder == "clip_resnet50" else "RN101"]
    out = f"clip-{file.model.lower()}.safetensors"
    return f"fetch {file.address} by hand, then refseg convert-weights clip {file.file_name} --out {out}"


def _find(weights: str, encoder: nn.Module) -> Path:
    """Return the local path of `image_weights`. A file named by `timm:` is downloaded if it is not cached."""
    if not weights.startswith("timm:"):
        return Path(weights)
    name = weights.removeprefix("timm:")
    known = SWIN_NAMES if isinstance(encoder, SwinBase) else ()
    if name not in known:
        raise CheckpointError(
            f"image_weights = {weights!r}: does not name weights that fit a {type(encoder).__name__}; expected "
            + (", ".join(f"timm:{each}" for each in known) or "a safetensors file of `refseg convert-weights clip`")
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(swin_repository(name), "model.safetensors"))
    except (OSError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"image_weights = {weights!r}: not on this machine, and the download failed ({reason}); fetch "
            f"{swin_address(name)} by hand and give the file's path"
        ) from error


def _load(module: nn.Module, path: Path, rules: _Rules) -> None:
    """Load a file into a module, and refuse names that are missing, unknown, or of another shape or type."""
    published, metadata = _read(path, rules)
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}  # name in the file, by name in the module
    unknown: list[str] = []
    for name, tensor in published.items():
        if not re.search(rules.ignored, name):
            own_name = _rename(name, rules.renames)
            if own_name is None:
                unknown.append(name)
            elif own_name in state:
                raise CheckpointError(f"{path}: {names[own_name]} and {name} are the same weight; expected each once")
            else:
                state[own_name], names[own_name] = tensor, name
    own = module.state_dict()
    # The counters of batch norms are not in the files, and have no effect because the momentum is fixed.
    missing = [
        n for n in own if n not in state and not re.search(rules.new, n) and not n.endswith("num_batches_tracked")
    ]
    unknown += [names[n] for n in state if n not in own]
    types = [
        f"{names[n]} ({state[n].dtype}, expected {own[n].dtype})"
        for n in state
        if n in own and state[n].is_floating_point() != own[n].is_floating_point()
    ]
    shapes = [
        f"{names[n]} ({tuple(state[n].shape)}, expected {tuple(own[n].shape)})"
        for n in state
        if n in own and state[n].shape != own[n].shape
    ]
    for fault, found in (
        ("missing", missing),
        ("unknown", unknown),
        ("of another shape", shapes),
        ("of another type", types),
    ):
        if found:
            raise CheckpointError(
                f"{path}: {counted(len(found), 'weight')} {fault}, the first is {found[0]}; expected the file "
                f"published for {type(module).__name__}: {rules.remedy}"
            )
    module.load_state_dict(
        {n: state[n].float() if state[n].is_floating_point() else state[n] for n in state}, strict=False
    )
    origin = ", ".join(f"{key} {metadata[key]}" for key in ("kind", "source", "source_sha256") if key in metadata)
    logger.info("%s starts from %s%s", type(module).__name__, path, f" ({origin})" if origin else "")


def _read(path: Path, rules: _Rules) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; {rules.remedy}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); {rules.remedy}") from error


def _rename(name: str, renames: tuple[tuple[str, str], ...]) -> str | None:
    """Return the encoder's name for a published name. Return None if no rule matches."""
    for pattern, replacement in renames:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return _stage_from_zero(renamed)
    return None


def _stage_from_zero(name: str) -> str:
    """Decrease the number of a stage by 1, because CLIP counts stages from 1 and timm from 0."""
    return re.sub(r"(?<=backbone\.stages_)\d", lambda digit: str(int(digit[0]) - 1), name)
