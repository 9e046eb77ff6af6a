"""CLIP's byte-pair tokenizer: its ids equal those of open_clip's `SimpleTokenizer`, but it is much faster.

Two facts make it fast. No token spans white space, so the ids of each word can be cached. And CLIP's cleaning (ftfy,
then HTML unescaping twice) does not change printable ASCII without `&`, which covers nearly every annotated sentence.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
Sec. 2.4, and the code and vocabulary published with it (MIT).
"""

import gzip
import hashlib
import html
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import ftfy
import regex

from refseg.errors import RefsegError, UsageError

SOS_ID = 49406
"""Id of the token that starts every sentence."""
EOS_ID = 49407
"""Id of the token that ends every sentence, also a truncated one: CLIP takes the sentence feature at its position."""
VOCAB_SIZE = 49408
"""Number of token ids: 256 bytes, 256 bytes at the end of a word, the merges, SOS and EOS."""

_VOCABULARY_NAME = "bpe_simple_vocab_16e6.txt.gz"
_VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
IDENTITY = {"name": "clip-bpe", "vocab_sha256": _VOCABULARY_SHA256}
"""Identity of the tokenizer that produced `token_ids`, as a dataset's descriptor records it."""

_NUM_MERGES = VOCAB_SIZE - 2 * 256 - 2
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols of Unicode that are invisible: Hangul fillers and the empty Braille pattern."""
_SPECIAL_IDS = {"<start_of_text>": SOS_ID, "<end_of_text>": EOS_ID}
# As in CLIP, a token is a contraction, a run of letters, a single digit, or a run of other characters. The name of a
# special token that is written out in a sentence becomes that token, as in open_clip.
_TOKEN = regex.compile(
    "|".join(_SPECIAL_IDS) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def encode(sentence: str) -> tuple[int, ...]:
    """Return the token ids of a sentence: SOS, the words, EOS. They are neither truncated nor padded.

    The empty sentence gives `(SOS_ID, EOS_ID)`. Case, different encodings of accents, HTML entities and runs of white
    space are normalised as in CLIP.
    """
    if not (sentence.isascii() and sentence.isprintable() and "&" not in sentence):
        sentence = html.unescape(html.unescape(ftfy.fix_text(sentence)))
    token_ids = [SOS_ID]
    for word in sentence.lower().split():
        token_ids += _encode_word(word)
    token_ids.append(EOS_ID)
    return tuple(token_ids)


def shows_words(sentence: str, token_ids: Sequence[int]) -> bool:
    """Return False if the cleaned sentence has no visible character, for example one of zero-width spaces or `&nbsp;`.

    Args:
        sentence: The sentence that was encoded.
        token_ids: Token ids that `encode` returned for it.
    """
    if sentence.isascii() and sentence.isprintable() and "&" not in sentence:
        return bool(sentence.strip())
    return any(unicodedata.category(letter)[0] in "LNPS" and letter not in _BLANKS for letter in decode(token_ids))


def decode(token_ids: Iterable[int]) -> str:
    """Return the text of token ids in lower case, with one space between words and without SOS and EOS.

    Bytes that are not UTF-8 become U+FFFD; they occur where a sentence was truncated within a character.

    Raises:
        UsageError: If an id is not in the vocabulary.
    """
    pieces = _vocabulary().pieces
    text = bytearray()
    for token_id in token_ids:
        if not 0 <= token_id < VOCAB_SIZE:
            raise UsageError(f"token id {token_id}: expected 0 to {VOCAB_SIZE - 1}")
        if token_id not in (SOS_ID, EOS_ID):
            text += pieces[token_id]
    return text.decode("utf-8", errors="replace").strip()


def group_words(token_ids: Sequence[int]) -> list[tuple[str, int]]:
    """Join the token ids of each word, and return each word's text with the number of its ids.

    SOS and EOS are returned as the words `[SOS]` and `[EOS]`. As in CLIP, the end of a contraction, a digit and a run
    of punctuation are words, too.
    """
    words: list[tuple[str, int]] = []
    first = 0
    for end, token_id in enumerate(token_ids, 1):
        if token_id in (SOS_ID, EOS_ID):
            if first < end - 1:  # a word that was truncated before its last piece
                words.append((decode(token_ids[first : end - 1]), end - 1 - first))
            words.append(("[SOS]" if token_id == SOS_ID else "[EOS]", 1))
            first = end
        elif _vocabulary().pieces[token_id].endswith(b" "):
            words.append((decode(token_ids[first:end]), end - first))
            first = end
    return words


def truncate(token_ids: Sequence[int], length: int) -> tuple[int, ...]:
    """Truncate token ids to at most `length`; the last id remains EOS.

    Raises:
        UsageError: If `length` is below 2, the number of SOS and EOS.
    """
    if length < 2:
        raise UsageError(f"cannot truncate a sentence to {length} tokens; expected at least 2 (SOS and EOS)")
    if len(token_ids) <= length:
        return tuple(token_ids)
    return (*token_ids[: length - 1], EOS_ID)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The published vocabulary by id. A merge of higher priority has a lower id, so the lowest merged id goes first.

    Example: if `t h -> th` has id 514 and `th e</w> -> the</w>` has id 520, the bytes of "the" become
    t h e</w>, then th e</w>, then the</w>.

    Attributes:
        byte_ids: The id of each byte value inside a word; the id plus 256 is the byte at the end of a word.
        merges: Maps two adjacent ids to the id that replaces them.
        pieces: The bytes of each id; the end of a word is written as a space.
    """

    byte_ids: tuple[int, ...]
    merges: dict[tuple[int, int], int]
    pieces: tuple[bytes, ...]


@cache
def _vocabulary() -> _Vocabulary:
    """Read the vocabulary on first use.

    Raises:
        RefsegError: If the packaged file is not the published one.
    """
    packed = (files("refseg") / "assets" / _VOCABULARY_NAME).read_bytes()
    if (found := hashlib.sha256(packed).hexdigest()) != _VOCABULARY_SHA256:
        raise RefsegError(
            f"refseg/assets/{_VOCABULARY_NAME}: found sha256 {found}, expected {_VOCABULARY_SHA256}; "
            "install refseg again"
        )
    # CLIP's vocabulary lists the printable bytes first, and writes the other bytes as characters from U+0100 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    order = printable + [byte for byte in range(256) if byte not in set(printable)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]

    pieces = [bytes([byte]) for byte in order]
    pieces += [piece + b" " for piece in pieces]
    ids = {letter: i for i, letter in enumerate(letters + [letter + "</w>" for letter in letters])}
    merges: dict[tuple[int, int], int] = {}
    for line in gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + _NUM_MERGES]:
        left, right = line.split()
        merged = len(pieces)
        ids[left + right] = merged
        merges[ids[left], ids[right]] = merged
        pieces.append(pieces[ids[left]] + pieces[ids[right]])
    pieces += [b"", b""]  # SOS, EOS
    byte_ids = [0] * 256
    for i, byte in enumerate(order):
        byte_ids[byte] = i
    return _Vocabulary(tuple(byte_ids), merges, tuple(pieces))


@lru_cache(maxsize=1 << 16)
def _encode_word(word: str) -> tuple[int, ...]:
    """Return the token ids of a lower-case word without white space."""
    token_ids: list[int] = []
    for token in _TOKEN.findall(word):
        special = _SPECIAL_IDS.get(token)
        token_ids += _merge(token.encode("utf-8")) if special is None else [special]
    return tuple(token_ids)


def _merge(token: bytes) -> list[int]:
    """Merge adjacent pieces of one token, the pair of highest priority first, until no pair is in the vocabulary."""
    vocabulary = _vocabulary()
    ids = [vocabulary.byte_ids[byte] for byte in token]
    ids[-1] += 256
    while len(ids) > 1:
        pairs = list(itertools.pairwise(ids))
        best = min(pairs, key=lambda pair: vocabulary.merges.get(pair, VOCAB_SIZE))
        if best not in vocabulary.merges:
            break
        merged: list[int] = []
        i = 0
        while i < len(ids):
            if i < len(pairs) and pairs[i] == best:
                merged.append(vocabulary.merges[best])
                i += 2
            else:
                merged.append(ids[i])
                i += 1
        ids = merged
    return ids
