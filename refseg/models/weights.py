"""Pretrained encoder weights: published names to ours, strictly, with every name accounted for."""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from refseg.errors import CheckpointError
from refseg.model_config import ModelConfig
from refseg.models.image_encoder import ClipResNet, SwinBase
from refseg.models.model import SegmentationModel

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


def load_pretrained(model: SegmentationModel, config: ModelConfig) -> None:
    """Start the encoders from the files that the recipe names; an empty name leaves them random.

    `image_weights` of a CLIP ResNet and `text_weights` are safetensors with OpenAI's names (one file serves both);
    `image_weights` of Swin-Base is timm's `model.safetensors` of `swin_base_patch4_window12_384.ms_in22k`.

    Raises:
        CheckpointError: If a file is missing, is no safetensors file, or its names or shapes do not fit.
    """
    encoder = model.image_encoder
    if config.image_weights:
        if isinstance(encoder, ClipResNet):
            new = r"^attnpool\.connect\."  # CRIS's residual branch is in no published file
            _load(encoder, config.image_weights, _CLIP_IMAGE, ignored=rf"{_CLIP_IGNORED}|^(?!visual\.)", new=new)
        elif isinstance(encoder, SwinBase):
            ignored = r"^(norm|head)\.|\.(attn_mask|relative_position_index)$"
            _load(encoder, config.image_weights, _TIMM_SWIN, ignored=ignored, new=r"^norms\.")
        else:
            raise CheckpointError(
                f"image_weights = {config.image_weights!r}: the {config.image_encoder} encoder has no published "
                "weights; leave it empty"
            )
    if config.text_weights:
        ignored = rf"{_CLIP_IGNORED}|^visual\."
        _load(model.text_encoder, config.text_weights, _CLIP_TEXT, ignored=ignored, new=r"^$")


def _load(module: nn.Module, path: str, renames: tuple[tuple[str, str], ...], *, ignored: str, new: str) -> None:
    """Load a file into a module: each of its names is renamed or ignored, each of the module's found or new."""
    try:
        published = load_file(Path(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; download the weights once and give the path of the safetensors file"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: found no safetensors file ({error}); convert the weights first") from error
    state = _rename(published, renames, ignored)
    own = module.state_dict()
    # Counters of batch norms are in no rule of ours and change nothing at a fixed momentum.
    missing = [n for n in own if n not in state and not re.search(new, n) and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    wrong = [n for n in state if n in own and state[n].shape != own[n].shape]
    for fault, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong)):
        if names:
            raise CheckpointError(
                f"{path}: {len(names)} weights are {fault}, the first is {names[0]}; "
                f"expected the file published for {type(module).__name__}"
            )
    module.load_state_dict(
        {n: state[n].float() if state[n].is_floating_point() else state[n] for n in state}, strict=False
    )


def _rename(published: Mapping[str, Tensor], renames: tuple[tuple[str, str], ...], ignored: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if re.search(ignored, name):
            continue
        for pattern, replacement in renames:
            renamed, hits = re.subn(pattern, replacement, name)
            if hits:
                state[_stage_from_zero(renamed)] = tensor
                break
        else:
            state[name] = tensor
    return state


def _stage_from_zero(name: str) -> str:
    """CLIP counts stages from 1, timm from 0."""
    return re.sub(r"(?<=backbone\.stages_)\d", lambda digit: str(int(digit[0]) - 1), name)
