"""Text states kept by token ids: many sentences of a dataset are written more than once."""

from collections import OrderedDict

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refseg.models.model import SegmentationModel, TextState


class TextCache:
    """`encode_text` of a model that does not change, asked once for each sentence.

    A state does not depend on the padding beside it, so what was encoded in one batch serves in another.
    """

    def __init__(self, model: SegmentationModel, *, max_sentences: int = 8192) -> None:
        """Wrap.

        Args:
            model: In evaluation mode, its weights fixed.
            max_sentences: Kept at most, those used last; at 512 x 17 numbers each takes 35 kB.
        """
        self._model = model
        self._max_sentences = max_sentences
        self._rows: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextState:
        """Encode what was not encoded before, and put the batch together."""
        lengths = token_mask.sum(1).tolist()
        keys = [tuple(ids[:length]) for ids, length in zip(token_ids.tolist(), lengths, strict=True)]
        new = {key: row for row, key in enumerate(keys) if key not in self._rows}
        if new:
            rows = list(new.values())
            state: TextState = self._model.encode_text(token_ids[rows], token_mask[rows])
            for place, key in enumerate(new):
                # Copies: a view would keep the whole batch.
                self._rows[key] = state.words[place, : len(key)].clone(), state.sentence[place].clone()
        words, sentences = zip(*(self._rows[key] for key in keys), strict=True)
        for key in keys:
            self._rows.move_to_end(key)
        while len(self._rows) > self._max_sentences:
            self._rows.popitem(last=False)
        return TextState(
            words=pad_sequence(list(words), batch_first=True),
            sentence=torch.stack(sentences),
            token_mask=token_mask[:, : max(lengths)],
        )
