import pytest
import torch
from torch.nn.functional import conv2d

from refseg.models.mask_decoder import SentenceFilter


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3, 5])
def test_each_sentence_has_a_convolution_of_its_own(size: int) -> None:
    # CRIS's form: one grouped convolution over the channels of all sentences, numbers in the order of conv2d.
    torch.manual_seed(0)
    module = SentenceFilter(sentence_dim=5, dim=4, size=size).double()
    x, sentence = torch.randn(3, 4, 6, 7, dtype=torch.double), torch.randn(3, 5, dtype=torch.double)

    made = torch.einsum("bs,os->bo", sentence, module.generate.weight) + module.generate.bias
    kernels, biases = made[:, :-1].reshape(3, 4, size, size), made[:, -1]
    expected = conv2d(x.reshape(1, 12, 6, 7), kernels, biases, padding=size // 2, groups=3).reshape(3, 1, 6, 7)

    torch.testing.assert_close(module(x, sentence), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_filter_by_hand() -> None:
    # Sentence (2) makes the taps 2 * (1..9) and the bias 2 * 100. The pixel of 1 is in the top left corner of 2 x 2.
    # Its own position sees it by the middle tap (5), the one to its right by tap 4, the one below by tap 2, and the one
    # below right by tap 1.
    module = SentenceFilter(sentence_dim=1, dim=1, size=3)
    module.generate.weight.copy_(torch.tensor([*range(1, 10), 100.0])[:, None])
    module.generate.bias.zero_()
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = 1

    assert module(x, torch.tensor([[2.0]])).tolist() == [[[[210, 208], [204, 202]]]]
