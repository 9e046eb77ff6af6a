"""The tokenizer against open_clip's, on real sentences and on hard ones."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refseg import tokenizer
from refseg.errors import RefsegError, UsageError
from refseg.tokenizer import EOS_ID, SOS_ID, VOCAB_SIZE, decode, encode, truncate

HARD_SENTENCES = [
    "",
    " ",
    "!",
    "!!! !",
    "a photo of a cat",
    "A PHOTO of A Cat",
    "it's the man's, they've said we'll, I'd don't you're I'm",
    "'s 't 'RE",
    "don`t man´s",
    "left-most guy w/ hat, 2nd from right...",
    "12345 3.14 ½ ² Ⅷ",
    "emoji 🦒 and 👨‍👩‍👧‍👦 and ❤️",
    "café naïve Ångström ÉCOLE",
    "cafe\u0301 in two code points",
    "ﬁsh with a ligature",
    "İstanbul ẞ Σίσυφος",
    "man &amp; woman",
    "man &amp;amp; woman",
    "&lt;b&gt;bold&lt;/b&gt; &quot;x&quot;",
    "&amp;lt;b&amp;gt;",
    "<b>&amp;</b>",
    "&nbsp;left&nbsp;",
    "&notanentity; & and &#233; &#xD800;",
    "â€œcurly mojibakeâ€\x9d and donâ€™t",
    "“curly” ‘quotes’",
    "schÃ¶n",
    "狗在左边",
    "日本語の文章、右の犬",
    "한국어 русский العربية עברית हिन्दी",
    "ｆｕｌｌｗｉｄｔｈ　ｔｅｘｔ",
    "tab\tnew\nline\r\nreturn\x0bvertical\x0cfeed",
    "\x00nul \x1b[31mred\x1b[0m \x1c\x1d\x1e\x1f sep \x7f del \x85 nel",
    "zero\u200bwidth \u2028 line \ufeffbom non\u00a0break \u180e",
    "lone surrogate \ud800 here",
    "<start_of_text> inside <END_OF_TEXT> <end_of_text>s",
    "underscore_word __init__ a_b",
    "supercalifragilisticexpialidocious" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
    " ".join(f"word{i}" for i in range(500)),
    "".join(map(chr, range(32, 127))),
    "".join(map(chr, range(1, 0x250))),
]


@pytest.fixture(scope="module")
def open_clip_tokenizer() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        simple = pytest.importorskip("open_clip.tokenizer", reason="the oracle of these tests")
        return simple.SimpleTokenizer()


def _strings(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)


@pytest.mark.slow
def test_ids_equal_open_clip_on_every_word_of_the_real_evaluation_sentences(
    shared_data: Path, open_clip_tokenizer
) -> None:
    strings: list[str] = []
    for path in sorted((shared_data / "refcoco-eval-json").glob("*.json")):
        strings += _strings(json.loads(path.read_text(encoding="utf-8")))  # file names too
    # 42,577 sentences in the five lists, again in the two indices (16,491) and generated ones (1,975).
    assert len(strings) > 42_577 + 16_491 + 1_975

    words: set[str] = set()
    chosen = []  # sentences with a word that none before them has; all digits count as one
    for string in dict.fromkeys(strings):
        found = re.sub(r"\d", "0", string).split()
        if not words.issuperset(found):
            chosen.append(string)
            words.update(found)
    assert len(words) == 6657

    unequal = [s for s in chosen if encode(s) != (SOS_ID, *open_clip_tokenizer.encode(s), EOS_ID)]

    assert unequal == []


@pytest.mark.parametrize("sentence", HARD_SENTENCES, ids=lambda sentence: ascii(sentence)[:30])
def test_ids_equal_open_clip_on_hard_sentences(sentence: str, open_clip_tokenizer: Any) -> None:
    assert encode(sentence) == (SOS_ID, *open_clip_tokenizer.encode(sentence), EOS_ID)


def test_ids_are_the_published_ones() -> None:
    # From the CLIP repository's own example; '!' is id 0, so padding cannot be told by the id.
    assert encode("a photo of a cat") == (49406, 320, 1125, 539, 320, 2368, 49407)
    assert encode("") == (49406, 49407)
    assert encode("!") == (49406, 256, 49407)
    assert encode("!?!x")[1] != 0


def test_a_sentence_is_not_cut() -> None:
    assert len(encode("dog " * 500)) == 502


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("A Cat", "a cat"),
        ("", ""),
        ("café  &amp; 狗", "café & 狗"),
        ("left-most", "left - most"),
    ],
)
def test_decoding_gives_the_cleaned_sentence_back(sentence: str, text: str) -> None:
    assert decode(encode(sentence)) == text


def test_decoding_half_a_character_does_not_fail() -> None:
    ids = encode("🦒")
    assert "�" in decode(ids[:2])


def test_decoding_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match=r"token id 49408: expected 0 to 49407"):
        decode([SOS_ID, VOCAB_SIZE])


def test_cutting_keeps_the_end_of_the_sentence() -> None:
    ids = encode("the small red circle")  # 6 ids
    assert truncate(ids, 6) == ids
    assert truncate(ids, 4) == (SOS_ID, ids[1], ids[2], EOS_ID)
    assert truncate(ids, 2) == (SOS_ID, EOS_ID)


def test_pieces_are_grouped_to_words() -> None:
    ids = tokenizer.encode("it's a snowboarderz!")

    grouped = [("[SOS]", 1), ("it", 1), ("'s", 1), ("a", 1), ("snowboarderz", 4), ("!", 1), ("[EOS]", 1)]
    assert tokenizer.group_words(ids) == grouped
    cut = tokenizer.truncate(ids, 7)  # within the long word
    assert tokenizer.group_words(cut) == [*grouped[:4], ("snowboar", 2), ("[EOS]", 1)]


def test_cutting_below_two_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot truncate a sentence to 1 tokens; expected at least 2"):
        truncate(encode("cat"), 1)


def test_a_changed_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"other merges"))
    monkeypatch.setattr(tokenizer, "files", lambda package: tmp_path)

    with pytest.raises(RefsegError, match=r"16e6.txt.gz: found sha256 \w+, expected 924691ac.*install"):
        tokenizer._vocabulary.__wrapped__()


def test_importing_the_tokenizer_imports_no_torch_and_reads_no_vocabulary() -> None:
    code = (
        "import sys, refseg.tokenizer as t; "
        "assert 'torch' not in sys.modules; assert t._vocabulary.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
