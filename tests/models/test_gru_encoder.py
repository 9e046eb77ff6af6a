"""The bidirectional GRU against its equations and against PyTorch's packed form."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from refseg.models.text_encoder import BiGruTextEncoder

IDS = torch.tensor([[5, 1, 7, 2, 6], [5, 3, 6, 0, 0]])
KEEP = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def encoder() -> BiGruTextEncoder:
    torch.manual_seed(0)
    return BiGruTextEncoder(dim=4, vector_dim=3, vocab_size=8).double()


def steps(gru: nn.GRU, vectors: Tensor) -> Tensor:
    """Cho et al. 2014 as PyTorch has it: r, z, n are thirds of the weights; h = (1 - z) n + z h."""
    h = torch.zeros(4, dtype=torch.double)
    states = []
    for x in vectors:
        i_r, i_z, i_n = (gru.weight_ih_l0 @ x + gru.bias_ih_l0).chunk(3)
        h_r, h_z, h_n = (gru.weight_hh_l0 @ h + gru.bias_hh_l0).chunk(3)
        r, z = (i_r + h_r).sigmoid(), (i_z + h_z).sigmoid()
        h = (1 - z) * (i_n + r * h_n).tanh() + z * h
        states.append(h)
    return torch.stack(states)


@torch.no_grad()
def test_words_are_the_sum_of_both_directions_and_the_sentence_their_weighted_mean() -> None:
    model = encoder()

    words, sentence = model(IDS, KEEP)

    for row, length in enumerate((5, 3)):
        vectors = model.token_embedding.weight[IDS[row, :length]]
        expected = steps(model.from_start, vectors) + steps(model.from_end, vectors.flip(0)).flip(0)
        torch.testing.assert_close(words[row, :length], expected, rtol=1e-10, atol=1e-10)
        shares = (expected @ model.score.weight[0]).exp()
        mean = torch.einsum("l,lw->w", shares / shares.sum(), expected)
        torch.testing.assert_close(sentence[row], mean, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_it_is_pytorchs_bidirectional_gru_over_packed_sentences() -> None:
    model = encoder()
    packed = nn.GRU(3, 4, batch_first=True, bidirectional=True).double()
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        getattr(packed, name).copy_(getattr(model.from_start, name))
        getattr(packed, f"{name}_reverse").copy_(getattr(model.from_end, name))

    both, _ = packed(pack_padded_sequence(model.token_embedding(IDS), KEEP.sum(1), batch_first=True))
    both, _ = pad_packed_sequence(both, batch_first=True)

    expected = (both[:, :, :4] + both[:, :, 4:])[KEEP]
    torch.testing.assert_close(model(IDS, KEEP)[0][KEEP], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_weights_of_words_sum_to_one_and_leave_out_padding() -> None:
    model = encoder()

    shares = model.word_weights(model(IDS, KEEP)[0], KEEP)

    torch.testing.assert_close(shares.sum(1), torch.ones(2, dtype=torch.double))
    assert (shares[~KEEP] == 0).all()
    assert (shares[KEEP] > 0).all()
