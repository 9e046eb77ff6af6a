"""On a CPU, equal runs give equal bits, also with several threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from refseg.config import TrainConfig
from refseg.training.launch import start_accelerator

SENTENCES, IMAGES, FEATURES = 9, 3, 64 * 64  # more than the 32768 numbers from which on torch takes a second thread


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An accelerator on a CPU with two threads; torch's settings are put back."""
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 2)
    torch.use_deterministic_algorithms(False)
    start_accelerator(TrainConfig(trackers=()))
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)


def shared_image_gradient(gradients: Tensor, image_index: Tensor) -> Tensor:
    """Return the gradient of the images, which sentences share as in the models' `features[image_index]`."""
    features = torch.zeros(IMAGES, FEATURES, requires_grad=True)
    features[image_index].backward(gradients)
    assert features.grad is not None
    return features.grad


@pytest.mark.usefixtures("two_threads")
def test_the_gradients_of_an_image_are_added_in_the_order_of_its_sentences() -> None:
    # Two threads take four and a half sentences each, so both add to the gradient of the second image, in the order in
    # which they finish. In float32, (a + b) + c is not a + (b + c), so the order would change the result.
    generator = torch.Generator().manual_seed(0)
    image_index = torch.arange(SENTENCES) // IMAGES
    for _ in range(20):
        gradients = torch.randn(SENTENCES, FEATURES, generator=generator)
        in_order = torch.stack([(a + b) + c for a, b, c in gradients.split(IMAGES)])

        assert torch.equal(shared_image_gradient(gradients, image_index), in_order)
