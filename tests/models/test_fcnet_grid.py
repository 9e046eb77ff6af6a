"""FCNet's weights record the grid for which they were made."""

import pytest
import torch
from torch import Tensor

from refseg.errors import CheckpointError
from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.models.fcnet import EmphasisGeneration, FCNet, resize_native_grid


def fcnet(input_size: tuple[int, int]) -> FCNet:
    config = FCNetConfig(image_encoder="tiny", dim=32, ffn_dim=32, num_key_channels=4, num_heads=4)
    return build_model(config, input_size=input_size).eval()


@pytest.mark.parametrize("other", [(96, 96), (128, 64)])
def test_weights_of_another_native_grid_are_refused_by_both_names(other: tuple[int, int]) -> None:
    # Grids of 8 x 4 and 4 x 8 have the same number of positions, so shapes alone do not distinguish them.
    state = fcnet((64, 128)).state_dict()
    grid = (other[0] // 16, other[1] // 16)
    expected = (
        rf"egm\.native_grid: found weights for key maps of 4 x 8 \(input 64 x 128\), expected {grid[0]} x {grid[1]} "
        rf"\(input {other[0]} x {other[1]}\); .*resize_native_grid\(state, \({grid[0]}, {grid[1]}\)\)"
    )
    with pytest.raises(CheckpointError, match=expected):
        fcnet(other).load_state_dict(state)


def test_converted_weights_load_and_everything_else_is_kept() -> None:
    state = fcnet((64, 64)).state_dict()
    model = fcnet((96, 64))

    model.load_state_dict(resize_native_grid(state, (6, 4)))

    found = model.state_dict()
    changed = [name for name in state if not torch.equal(found[name], state[name])]
    assert changed == ["egm.native_grid", "egm.attention.query.weight"]


def test_conversion_to_the_same_grid_changes_nothing() -> None:
    state = fcnet((64, 64)).state_dict()

    same = resize_native_grid(state, (4, 4))

    assert all(torch.equal(same[name], value) for name, value in state.items())


def test_weights_without_a_grid_are_not_converted() -> None:
    with pytest.raises(CheckpointError, match="no native_grid, expected a model with emphasis generation"):
        resize_native_grid({"head.weight": torch.zeros(1)}, (4, 4))


@torch.no_grad()
def test_a_constant_kernel_sums_a_constant_map_alike_on_every_grid() -> None:
    # A kernel of ones over a map of threes on 2 x 3 gives 18; on 4 x 5 the kernel is 6 / 20 each: 20 * 3 * 6 / 20.
    kernels = {"native_grid": torch.tensor([2, 3]), "attention.query.weight": torch.ones(1, 6)}

    resized = resize_native_grid(kernels, (4, 5))

    torch.testing.assert_close(resized["attention.query.weight"], torch.full((1, 20), 0.3))
    assert resized["native_grid"].tolist() == [4, 5]


def smooth(grid: tuple[int, int]) -> Tensor:
    """Two waves sampled at the centres of a grid's cells, as a picture is at two sizes."""
    y, x = ((torch.arange(n, dtype=torch.double) + 0.5) / n for n in grid)
    return torch.stack([(3 * y)[:, None].sin() * (2 * x).cos(), (2 * y)[:, None].cos() + (4 * x).sin()])


@torch.no_grad()
def test_both_ways_to_another_size_come_near_the_native_queries() -> None:
    torch.manual_seed(0)
    native = EmphasisGeneration(grid=(30, 30), word_dim=8, dim=8, num_heads=2).double()
    native.attention.query.weight.copy_(torch.randn(8, 2, dtype=torch.double) @ smooth((30, 30)).flatten(1))
    expected = native.attention.query(native.flatten(smooth((30, 30))[None]))

    at_other_size = native.attention.query(native.flatten(smooth((26, 26))[None]))  # maps resized
    converted = EmphasisGeneration(grid=(26, 26), word_dim=8, dim=8, num_heads=2).double()
    converted.load_state_dict(resize_native_grid(native.state_dict(), (26, 26)))
    with_kernels = converted.attention.query(converted.flatten(smooth((26, 26))[None]))

    for found in (at_other_size, with_kernels):
        assert 0 < (found - expected).norm() / expected.norm() < 0.03


@torch.no_grad()
def test_maps_of_the_native_grid_pass_bit_for_bit() -> None:
    egm = EmphasisGeneration(grid=(3, 4), word_dim=8, dim=8, num_heads=2)
    maps = torch.randn(2, 5, 3, 4)

    assert torch.equal(egm.flatten(maps), maps.flatten(2))
