import pytest
import torch
from torch import nn

from refseg.config import TrainConfig
from refseg.training.optim import (
    build_optimizer,
    learning_rate_factor,
    load_optimizer_state,
    match_layouts,
    set_learning_rate,
)


def named(*shapes: tuple[int, ...]) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{i}", nn.Parameter(torch.zeros(shape))) for i, shape in enumerate(shapes)]


def test_the_papers_schedule_falls_to_a_tenth_from_the_36th_epoch_on() -> None:
    config = TrainConfig()
    factors = [learning_rate_factor(config, step, steps_per_epoch=662) for step in (0, 35 * 662 - 1, 35 * 662, 33099)]

    assert factors == pytest.approx([1, 1, 0.1, 0.1])


def test_the_rate_rises_in_a_line_while_warming_up_then_falls_as_a_cosine() -> None:
    config = TrainConfig(epochs=2, schedule="cosine", warmup_steps=4)
    factors = [learning_rate_factor(config, step, steps_per_epoch=6) for step in (0, 1, 3, 4, 8, 12)]

    # 1/4, 2/4, 4/4; then 0, 4 and 8 of 8 steps of the cosine.
    assert factors == pytest.approx([0.25, 0.5, 1, 1, 0.5, 0])


def test_stopping_early_does_not_bend_the_curve() -> None:
    whole, part = TrainConfig(schedule="cosine"), TrainConfig(schedule="cosine", max_steps=3)

    assert learning_rate_factor(whole, 2, steps_per_epoch=5) == learning_rate_factor(part, 2, steps_per_epoch=5)


def test_the_backbone_has_its_tenth_and_vectors_do_not_decay() -> None:
    config = TrainConfig(optimizer="adamw", lr=1e-3, weight_decay=0.05)
    optimizer = build_optimizer(config, {"backbone": named((3, 3), (3,)), "rest": named((2, 2, 2))})
    set_learning_rate(optimizer, 0.5)

    found = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(1, pytest.approx(5e-5), 0.05), (1, pytest.approx(5e-5), 0.0), (1, pytest.approx(5e-4), 0.05)]


def test_adam_is_plain_adam() -> None:
    optimizer = build_optimizer(TrainConfig(), {"backbone": named((3,)), "rest": named((2,))})

    assert type(optimizer) is torch.optim.Adam
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1e-5), pytest.approx(1e-4)]


def test_a_step_is_the_same_whatever_the_memory_order_of_weights_and_gradients() -> None:
    # PyTorch's fused CPU kernel would fail this test, because it pairs both tensors by their order in memory.
    stepped = []
    for weight_format, gradient_format in (
        (torch.contiguous_format,) * 2,
        (torch.channels_last, torch.contiguous_format),
    ):
        weight = torch.nn.Parameter(torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=weight_format))
        optimizer = build_optimizer(TrainConfig(), {"backbone": [], "rest": [("weight", weight)]})
        for step in range(2):
            gradient = torch.arange(24.0).sub(6 * step + 7).reshape(2, 3, 2, 2)
            weight.grad = gradient.contiguous(memory_format=gradient_format)
            optimizer.step()
        stepped.append(weight.detach())

    torch.testing.assert_close(stepped[0], stepped[1], rtol=0, atol=0)


def test_only_cuda_has_the_fused_kernel() -> None:
    weight = nn.Parameter(torch.zeros(2))
    for device, fused in (("cpu", False), ("cuda", True)):
        optimizer = build_optimizer(TrainConfig(), {"backbone": [], "rest": [("weight", weight)]}, device=device)
        assert [group["fused"] for group in optimizer.param_groups] == [fused]


def test_gradients_get_the_strides_of_their_weights() -> None:
    weight = nn.Parameter(torch.zeros(4, 3, 1, 1).to(memory_format=torch.channels_last))
    weight.grad = torch.arange(12.0).reshape(4, 3, 1, 1)
    weight.grad = weight.grad.as_strided((4, 3, 1, 1), (3, 1, 1, 1))
    assert weight.grad.stride() != weight.stride()

    match_layouts(torch.optim.Adam([weight]))

    assert weight.grad.stride() == weight.stride()
    assert weight.grad.flatten().tolist() == list(range(12))


def test_the_state_of_another_device_is_taken_over_without_its_kernel_and_strides() -> None:
    def made(*, channels_last: bool) -> tuple[torch.optim.Optimizer, nn.Parameter]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = nn.Parameter(torch.ones(2, 3, 2, 2).to(memory_format=layout))
        return build_optimizer(TrainConfig(), {"backbone": [], "rest": [("weight", weight)]}), weight

    old, weight = made(channels_last=True)
    weight.grad = torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    old.step()
    state = old.state_dict()
    state["param_groups"][0]["fused"] = True  # as a GPU leaves it

    new, other = made(channels_last=False)
    load_optimizer_state(new, state)

    assert new.param_groups[0]["fused"] is False
    average = new.state[other]["exp_avg"]
    assert average.stride() == other.stride()
    torch.testing.assert_close(average, 0.1 * torch.arange(24.0).reshape(2, 3, 2, 2))
