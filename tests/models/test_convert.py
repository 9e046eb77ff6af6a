"""Weight files of other projects are converted name by name, and no code in them is run."""

import argparse
import hashlib
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

from refseg.errors import CheckpointError
from refseg.models import weight_files
from refseg.models.convert import convert_weights


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_archive_of_a_published_hash_is_converted_to_float32(
    small_clip_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = replace(weight_files.CLIP_FILES["RN50"], sha256=sha256(small_clip_archive))
    monkeypatch.setitem(weight_files.CLIP_FILES, "RN50", published)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(small_clip_archive)).state_dict()

    converted = convert_weights("clip", small_clip_archive, tmp_path / "new" / "clip.safetensors")

    found = load_file(converted.out)
    assert set(found) == set(expected) - {"logit_scale", "attn_mask"}
    assert converted.left_out == {"logit_scale": 1, "attn_mask": 1}
    for name, tensor in found.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    assert (converted.num_tensors, converted.num_parameters) == (len(found), sum(t.numel() for t in found.values()))
    with safe_open(converted.out, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["kind"], metadata["source"], metadata["source_sha256"]) == ("clip", "small.pt", published.sha256)
    assert [path.name for path in converted.out.parent.iterdir()] == ["clip.safetensors"]


def test_an_archive_of_another_hash_is_refused_unless_that_hash_is_accepted(
    small_clip_archive: Path, tmp_path: Path
) -> None:
    out, found = tmp_path / "clip.safetensors", sha256(small_clip_archive)

    with pytest.raises(CheckpointError, match=rf"found SHA-256 {found}, expected that of a published archive") as error:
        convert_weights("clip", small_clip_archive, out)
    assert f"{weight_files.CLIP_FILES['RN101'].sha256}/RN101.pt" in str(error.value)
    with pytest.raises(CheckpointError, match=rf"found SHA-256 {found}, expected SHA-256 {'0' * 64}"):
        convert_weights("clip", small_clip_archive, out, accepted_sha256="0" * 64)
    assert not out.exists()

    assert convert_weights("clip", small_clip_archive, out, accepted_sha256=found.upper()).source_sha256 == found


def test_a_missing_archive_is_told_with_its_address(tmp_path: Path) -> None:
    sha = "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"
    with pytest.raises(CheckpointError, match=rf"no such file; fetch it by hand from\n  https://.*/{sha}/RN101\.pt$"):
        convert_weights("clip", tmp_path / "RN101.pt", tmp_path / "out")


def cris_state() -> dict[str, torch.Tensor]:
    """One tensor of each part of a CRIS checkpoint, with the names that DistributedDataParallel gives them."""
    names = (
        "backbone.positional_embedding", "backbone.text_projection", "backbone.logit_scale",
        "backbone.visual.conv1.weight", "backbone.visual.layer1.0.downsample.0.weight",
        "backbone.visual.attnpool.connect.0.weight", "backbone.visual.attnpool.positional_embedding",
        "backbone.transformer.resblocks.0.attn.in_proj_weight", "backbone.token_embedding.weight",
        "backbone.ln_final.weight", "neck.txt_proj.0.weight", "decoder.layers.0.norm1.weight",
        "decoder.layers.1.norm1.weight", "proj.txt.weight",
    )  # fmt: skip
    return {f"module.{name}": torch.full((2,), float(number)).half() for number, name in enumerate(names)}


def test_the_backbone_of_cris_gets_openais_names_and_the_rest_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": cris_state(), "optimizer": {"lr": 1.0}}, tmp_path / "best_model.pth")

    converted = convert_weights("cris", tmp_path / "best_model.pth", tmp_path / "cris.safetensors")

    assert converted.left_out == {
        "backbone.logit_scale": 1, "neck": 1, "decoder": 2, "proj": 1, "epoch": 1, "optimizer": 1,
    }  # fmt: skip
    assert {name: tensor.tolist() for name, tensor in load_file(converted.out).items()} == {
        "positional_embedding": [0, 0],
        "text_projection": [1, 1],
        "visual.conv1.weight": [3, 3],
        "visual.layer1.0.downsample.0.weight": [4, 4],
        "visual.attnpool.connect.0.weight": [5, 5],
        "visual.attnpool.positional_embedding": [6, 6],
        "transformer.resblocks.0.attn.in_proj_weight": [7, 7],
        "token_embedding.weight": [8, 8],
        "ln_final.weight": [9, 9],
    }


def original_swin(prefix: str) -> tuple[SwinTransformer, dict[str, torch.Tensor]]:
    """A small Swin of timm, and its weights with the names of Microsoft's code, where merging ends a stage."""
    torch.manual_seed(0)
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=64, window_size=4, embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2), num_classes=3
    )
    state = {}
    for name, tensor in model.state_dict().items():
        for stage in (1, 2, 3):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        state[prefix + name.replace("head.fc.", "head.")] = tensor
    state[f"{prefix}layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    state[f"{prefix}layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    return model, state


def test_microsofts_swin_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    model, state = original_swin("")
    torch.save({"model": state}, tmp_path / "swin.pth")
    by_timm = checkpoint_filter_fn(dict(state), model)

    converted = convert_weights("lavt", tmp_path / "swin.pth", tmp_path / "swin.safetensors")

    found = load_file(converted.out)
    assert set(found) == {name for name in by_timm if not name.startswith(("norm.", "head."))}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.items())
    assert converted.left_out == {
        "attn_mask": 1, "relative_position_index": 1, "norm": 2, "head": 2,
    }  # fmt: skip


def lavt_file(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint as LAVT writes it, with the arguments of its command line."""
    _, state = original_swin("backbone.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("backbone.norm.", "backbone.head"))}
    state |= {
        "backbone.layers.0.fusion.vis_project.0.weight": torch.zeros(1),
        "backbone.layers.3.res_gate.0.weight": torch.zeros(1),
        "backbone.norm0.weight": torch.zeros(1),
        "classifier.conv1_4.weight": torch.zeros(1),
    }
    torch.save({"model": state, "bert_model": {"x": torch.zeros(1)}, "args": argparse.Namespace(lr=1e-4)}, path)
    return state


def test_lavts_arguments_are_let_in_by_name_alone(tmp_path: Path) -> None:
    state = lavt_file(tmp_path / "lavt.pth")
    out = tmp_path / "lavt.safetensors"
    with pytest.raises(CheckpointError, match=r"lavt\.pth: holds an argparse\.Namespace .*allow it by --allow-names"):
        convert_weights("lavt", tmp_path / "lavt.pth", out)
    assert not out.exists()

    converted = convert_weights("lavt", tmp_path / "lavt.pth", out, allow_namespace=True)

    found = load_file(out)
    assert torch.equal(found["layers.3.downsample.norm.weight"], state["backbone.layers.2.downsample.norm.weight"])
    assert len(found) == sum(".blocks." in n or "downsample" in n or "patch_embed" in n for n in state) - 2
    assert converted.left_out == {
        "backbone.layers.fusion": 1, "backbone.layers.res_gate": 1, "backbone.norm0": 1, "classifier": 1,
        "attn_mask": 1, "relative_position_index": 1, "bert_model": 1, "args": 1,
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="argparse"):  # the permission held only for that call
        convert_weights("lavt", tmp_path / "lavt.pth", out)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kind", ["cris", "lavt"])
def test_a_checkpoint_that_runs_code_is_refused_and_has_not_run(tmp_path: Path, kind: Any, new_format: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "crafted.pth"
    content = {"state_dict": cris_state(), "args": argparse.Namespace(lr=1), "x": _Touch(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)

    with pytest.raises(CheckpointError, match=r"crafted\.pth: its pickle asks for posix\.system, expected weights"):
        convert_weights(kind, path, tmp_path / "out", allow_namespace=True)

    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("num_bytes", [0, 5, 300, -40])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, num_bytes: int, new_format: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": cris_state()}, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[:num_bytes])

    with pytest.raises(CheckpointError, match=r"cut\.pth: not a file that torch.save wrote, or a truncated or damaged"):
        convert_weights("cris", path, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"module.fc.weight": torch.zeros(1)}},
            "found the name fc.weight, which does not occur",
        ),
        ({"state_dict": {"neck.x": torch.zeros(1)}}, "found no encoder weights, expected names such as backbone.vis"),
        ({"state_dict": {"backbone.visual.x": 1}}, "found 'backbone.visual.x', which is not a plain tensor"),
        ({"state_dict": {"backbone.visual.x": torch.ones(2, dtype=torch.complex64)}}, "which is not a plain tensor"),
        (
            {"state_dict": {"module.backbone.visual.x": torch.ones(1), "backbone.visual.x": torch.ones(1)}},
            "holds backbone.visual.x twice, with and without a prefix",
        ),
        ({"epoch": 1}, "found 'epoch', which is not a plain tensor, expected weights by name under state_dict"),
        ([1, 2], "found no weights by name, expected them under state_dict"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused_by_a_name(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pth")

    with pytest.raises(CheckpointError, match=message):
        convert_weights("cris", tmp_path / "other.pth", tmp_path / "out")


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "cris.safetensors"
    torch.save({"state_dict": cris_state()}, tmp_path / "cris.pth")
    convert_weights("cris", tmp_path / "cris.pth", out)
    before = out.read_bytes()

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr("refseg.models.convert.save_weights", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_weights("cris", tmp_path / "cris.pth", out)

    assert out.read_bytes() == before
