"""Caches text states by token ids, because many sentences occur more than once in a dataset."""

from collections import OrderedDict

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refseg.models.model import SegmentationModel, TextState


class TextCache:
    """Computes `encode_text` of a fixed model once for each distinct sentence.

    The features of a sentence do not depend on padding, so features from one batch can be reused in another batch.
    """

    def __init__(self, model: SegmentationModel, *, max_sentences: int = 8192) -> None:
        """Create an empty cache for a model.

        Args:
            model: Model in evaluation mode. The weights must not change.
            max_sentences: Largest number of cached sentences. The most recently used ones are kept. A sentence with 17
                words of 512 features needs 35 kB.
        """
        self._model = model
        self._max_sentences = max_sentences
        self._rows: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextState:
        """Return the text state of a batch, and encode only sentences that are not cached."""
        lengths = token_mask.sum(1).tolist()
        keys = [tuple(ids[:length]) for ids, length in zip(token_ids.tolist(), lengths, strict=True)]
        new = {key: row for row, key in enumerate(keys) if key not in self._rows}
        if new:
            rows = list(new.values())
            state: TextState = self._model.encode_text(token_ids[rows], token_mask[rows])
            for row, key in enumerate(new):
                # The rows are copied, because a view would keep the tensors of the whole batch in memory.
                self._rows[key] = state.words[row, : len(key)].clone(), state.sentence[row].clone()
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
