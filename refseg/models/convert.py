"""Converts weight files of other projects to safetensors files in fp32 with published names.

Three families are supported. `clip` is an archive by OpenAI, and its names are kept. `cris` is a checkpoint of CRIS, in
which a fine-tuned CLIP is the backbone. It gets the names of OpenAI. `lavt` is a checkpoint of LAVT, or the Swin file
by Microsoft from which LAVT starts. It gets the names of timm. The result lists the tensors that were left out. An
unknown name is an error.
"""

import argparse
import pickle
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refseg import __version__
from refseg.addresses import local_path
from refseg.aside import file_aside
from refseg.errors import CheckpointError, MissingCheckpointError, UsageError
from refseg.models.clip_archive import read_archive
from refseg.models.weight_files import CLIP_FILES, file_sha256, save_weights

Kind = Literal["clip", "cris", "lavt"]
_CLIP_NAMES = r"(?=(visual|transformer|token_embedding|ln_final)\.|(positional_embedding|text_projection)$)"
# Plain numbers that describe the model; an encoder does not need them.
_CLIP_NUMBERS = r"(logit_scale|input_resolution|context_length|vocab_size)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """Rules for renaming the weights in one family of checkpoint files. The first pattern that matches a name decides.

    Attributes:
        sections: Keys under which a checkpoint may store the weights.
        left_out: Pattern of the names that an encoder does not use.
        kept: Patterns of the names that are kept, each with the replacement of the matched part.
        example: A weight name found in every such file. Error messages show it.
    """

    sections: tuple[str, ...]
    left_out: str
    kept: tuple[tuple[str, str], ...]
    example: str


_FAMILIES: dict[Kind, _Family] = {
    "clip": _Family(
        sections=(),
        left_out=rf"^{_CLIP_NUMBERS}|(^|\.)attn_mask$",
        kept=((rf"^{_CLIP_NAMES}", ""),),
        example="visual.conv1.weight",
    ),
    "cris": _Family(
        sections=("state_dict",),
        left_out=rf"^(neck|decoder|proj)\.|^backbone\.{_CLIP_NUMBERS}|\.attn_mask$",  # FPN, decoder, projector
        kept=((rf"^backbone\.{_CLIP_NAMES}", ""),),
        example="backbone.visual.conv1.weight",
    ),
    "lavt": _Family(
        sections=("model", "state_dict"),
        # In this order: buffers that are computed; LAVT's fusion, its gates and norms; its head and BERT; Swin's
        # classification head with its norm.
        left_out=r"(^|\.)(relative_position_index|attn_mask)$"
        r"|^backbone\.(layers\.\d\.(fusion|res_gate)\.|norm\d\.)|^(classifier|text_encoder)\.|^(norm|head)\.",
        kept=(
            # The original Swin merges patches at the end of a stage, timm's at the start of the next one.
            (r"^(backbone\.)?layers\.0\.downsample\.", "layers.1.downsample."),
            (r"^(backbone\.)?layers\.1\.downsample\.", "layers.2.downsample."),
            (r"^(backbone\.)?layers\.2\.downsample\.", "layers.3.downsample."),
            (r"^(backbone\.)?(?=layers\.\d\.blocks\.|patch_embed\.)", ""),
        ),
        example="backbone.patch_embed.proj.weight",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """The result of a conversion.

    Attributes:
        out: The safetensors file.
        kind: Family of the source file.
        source_sha256: SHA-256 of the source file in hex.
        num_tensors: Number of tensors in the safetensors file.
        num_parameters: Number of elements of all these tensors.
        left_out: Number of tensors of the source that were left out, by the part of their names that identifies them
            (such as `neck`). Other entries of the checkpoint (such as `optimizer`) are listed with the number 1.
    """

    out: Path
    kind: Kind
    source_sha256: str
    num_tensors: int
    num_parameters: int
    left_out: dict[str, int]


def convert_weights(
    kind: Kind, source: Path, out: Path, *, accepted_sha256: str = "", allow_namespace: bool = False
) -> Converted:
    """Read a weight file without running code from it, and write the weights of an encoder as safetensors.

    Args:
        kind: Family of the file. clip: OpenAI's archive; cris: a checkpoint of CRIS; lavt: one of LAVT, or Microsoft's
            Swin file.
        source: The file to read; nothing in it is run.
        out: The safetensors file to write, whole or not at all; a file that an earlier call wrote is replaced.
        accepted_sha256: For kind clip, the hash of an archive that is taken although OpenAI did not publish it.
        allow_namespace: For kinds cris and lavt, accept a checkpoint that holds an `argparse.Namespace` beside the
            weights; it is not used.

    Raises:
        UsageError: If another file is at `out`. If an option does not apply to the kind.
        CheckpointError: If the file is missing or damaged. If it has another hash or belongs to another family. If it
            requests code.
    """
    if accepted_sha256 and kind != "clip":
        raise UsageError(f"--accept-hash: found kind {kind}, whose files have no published hashes; remove the option")
    if allow_namespace and kind == "clip":
        raise UsageError("--allow-namespace: an archive of CLIP contains no Namespace; remove the option")
    source, out = local_path(source), local_path(out)
    if not source.is_file():
        raise MissingCheckpointError(f"{source}: no such file; {_where_from(kind, source)}")
    _refuse_foreign(out)
    sha256 = file_sha256(source)
    if kind == "clip":
        _check_clip_hash(source, sha256, accepted_sha256)
        found = read_archive(source)
        others: list[str] = []
    else:
        found, others = _read_checkpoint(source, _FAMILIES[kind], allow_namespace=allow_namespace)
    kept, left_out = _apply(_FAMILIES[kind], found, source, kind)
    state = {name: _as_stored(tensor) for name, tensor in kept.items()}
    metadata = {
        "kind": kind,
        "source": source.name,
        "source_sha256": sha256,
        "refseg_version": __version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(out, synced=True) as aside:
        save_weights(aside, state, metadata=metadata)
    return Converted(
        out=out,
        kind=kind,
        source_sha256=sha256,
        num_tensors=len(state),
        num_parameters=sum(tensor.numel() for tensor in state.values()),
        left_out=dict(left_out + Counter(others)),
    )


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace a file that no earlier conversion wrote."""
    if not out.exists():
        return
    try:
        with safe_open(out, framework="pt") as file:
            written = "source_sha256" in (file.metadata() or {})
    except (OSError, SafetensorError):
        written = False
    if not written:
        raise UsageError(f"--out {out}: is not a file of `refseg convert-weights`; remove it, or name another file")


def _as_stored(tensor: Tensor) -> Tensor:
    """Return a contiguous copy in fp32, the type for training. Integers (counters of norms) keep their type."""
    return (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)


def _where_from(kind: Kind, source: Path) -> str:
    if kind != "clip":
        return f"expected a checkpoint that {kind.upper()}'s code wrote"
    files = [file for file in CLIP_FILES.values() if file.file_name == source.name] or list(CLIP_FILES.values())
    return "fetch it by hand from\n" + "\n".join(f"  {file.address}" for file in files)


def _check_clip_hash(source: Path, sha256: str, accepted: str) -> None:
    if sha256 in ({accepted.lower()} if accepted else {file.sha256 for file in CLIP_FILES.values()}):
        return
    if accepted:
        raise CheckpointError(f"{source}: found SHA-256 {sha256}, expected SHA-256 {accepted.lower()}")
    published = "\n".join(f"  {file.model:8} {file.address}" for file in CLIP_FILES.values())
    raise CheckpointError(
        f"{source}: found SHA-256 {sha256}, expected that of a published archive; the download is damaged, or it is "
        "another file. Fetch it again (the hash is in the address), or accept this one by its hash if you trust it:\n"
        f"{published}"
    )


def _read_checkpoint(path: Path, family: _Family, *, allow_namespace: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Read a file that `torch.save` wrote. Return the weights without DataParallel's prefix, and the other keys."""
    allowed: list[Any] = [argparse.Namespace] if allow_namespace else []
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_describe_refusal(error)}") from error
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"{path}: not a file that torch.save wrote, or a truncated or damaged one ({reason}); fetch it again"
        ) from error
    section = next((key for key in family.sections if isinstance(content, dict) and key in content), None)
    state = content if section is None else content[section]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: found no weights by name, expected them under {' or '.join(family.sections)}")
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_complex()
        if not isinstance(name, str) or not plain:
            raise CheckpointError(
                f"{path}: found {name!r}, which is not a plain tensor, expected weights by name "
                f"under {' or '.join(family.sections)}"
            )
    others = [] if section is None else [str(key) for key in content if key != section]
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        _put(found, name.removeprefix("module."), tensor, path)
    return found, others


def _describe_refusal(error: Exception) -> str:
    """Describe what a checkpoint requests. Torch's own message advises to load without the check, so it is not used."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        return "not a file that torch.save wrote, or a truncated or damaged one; fetch it again"
    name = named[1]
    if name == "argparse.Namespace":
        return "holds an argparse.Namespace besides weights; allow it by --allow-namespace (its values are not used)"
    return f"its pickle asks for {name}, expected weights and plain values; none of its code was run; do not use it"


def _apply(
    family: _Family, found: Mapping[str, Any], source: Path, kind: Kind
) -> tuple[dict[str, Tensor], Counter[str]]:
    """Return the kept tensors under their new names, and count the others by the part that excluded them."""
    kept: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    for name, tensor in found.items():
        if match := re.search(family.left_out, name):
            left_out[re.sub(r"\.\d+", "", match[0]).strip(".")] += 1
            continue
        for pattern, replacement in family.kept:
            renamed, hits = re.subn(pattern, replacement, name, count=1)
            if hits:
                _put(kept, renamed, tensor, source)
                break
        else:
            raise CheckpointError(
                f"{source}: found the name {name}, which does not occur in files of {kind}; expected names such as "
                f"{family.example}; check that the file is of this family"
            )
    if not kept:
        raise CheckpointError(f"{source}: found no encoder weights, expected names such as {family.example}")
    return kept, left_out


def _put(weights: dict[str, Tensor], name: str, tensor: Tensor, path: Path) -> None:
    if name in weights:
        raise CheckpointError(f"{path}: holds {name} twice, with and without a prefix; expected each weight once")
    weights[name] = tensor
