"""Checks and tokenises the sentences of a raw ref. A sentence without a visible character is a fault."""

from itertools import zip_longest
from typing import Any

from pipelines.rejects import RefFault
from refseg import tokenizer
from refseg.dataset.schema import Sentence
from refseg.values import is_text, short, whole_number


def read_sentences(ref: dict[Any, Any], *, no_target: bool) -> tuple[Sentence, ...]:
    """Check and tokenise the sentences of a raw ref.

    Args:
        ref: A raw ref with at least one sentence.
        no_target: True if the ref has no target. Then `exists` is False for each sentence, whatever the source states.

    Raises:
        RefFault: If a sentence has a fault. The message describes the first fault.
    """
    found = ref.get("sentences")
    if not isinstance(found, list | tuple) or not all(isinstance(sentence, dict) for sentence in found):
        raise RefFault("malformed_ref", f"found sentences {short(found)}, expected a list of dicts")
    sent_ids = find_sentence_ids(ref)
    return tuple(
        _sentence(sentence, position, sent_id, no_target)
        for position, (sentence, sent_id) in enumerate(zip(found, sent_ids, strict=True))
    )


def find_sentence_ids(ref: Any) -> list[int | None]:
    """Return the `sent_id` of each sentence of a raw ref; None if a `sent_id` is not an integer."""
    sentences = ref.get("sentences") if isinstance(ref, dict) else None
    if not isinstance(sentences, list | tuple):
        return []
    found = [sentence.get("sent_id") if isinstance(sentence, dict) else None for sentence in sentences]
    listed = ref.get("sent_ids")  # REFER's records hold the ids a second time here
    if isinstance(listed, list | tuple):
        pairs = zip_longest(found, listed[: len(found)])
        found = [other if own is None else own for own, other in pairs]
    return [whole_number(sent_id) for sent_id in found]


def _sentence(record: dict[Any, Any], position: int, sent_id: int | None, no_target: bool) -> Sentence:
    where = f"sentences[{position}]"
    sent = record.get("sent")
    if not is_text(sent):
        raise RefFault("malformed_ref", f"{where} has sent {short(sent)}, expected text")
    token_ids = tokenizer.encode(sent)
    if not tokenizer.shows_words(sent, token_ids):
        found = f"{sent!a:.60}, without a visible character" if sent.strip() else "empty"
        raise RefFault("no_sentence", f"{where} is {found}, expected words")
    if sent_id is None:
        found = short(record.get("sent_id"))
        raise RefFault("malformed_ref", f"{where} has sent_id {found}, expected a whole number")
    raw = record.get("raw", sent)
    words = record.get("tokens", sent.split(" "))
    if not is_text(raw):
        raise RefFault("malformed_ref", f"{where} has raw {short(raw)}, expected text")
    if not isinstance(words, list | tuple) or not all(is_text(word) for word in words):
        raise RefFault("malformed_ref", f"{where} has tokens {short(words)}, expected a list of words")
    exist = record.get("exist", True)  # R-RefCOCO's name of the field
    if exist not in (True, False):
        raise RefFault("malformed_ref", f"{where} has exist {short(exist)}, expected true or false")
    return Sentence(
        sent_id=sent_id,
        raw=raw,
        sent=sent,
        words=tuple(words),
        token_ids=token_ids,
        exists=bool(exist) and not no_target,
    )
