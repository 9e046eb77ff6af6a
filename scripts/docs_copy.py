"""Determines what the copy button of a code block copies: only the commands, without prompts and output."""

import html
import re

_BLOCK = re.compile(r'<div class="(?:language-\S+ )?highlight">(?=<pre>)(?:(?!</pre>).)*</pre></div>', re.DOTALL)


def copied_text(block: str) -> str:
    r"""Return the text that is copied from a code block.

    A block with prompts shows commands (`$ refseg verify shards`) and the lines that they print. Only the commands are
    copied, including continuation lines after a `\`. A block without prompts is copied unchanged.
    """
    if not re.search(r"(?m)^\$ ", block):
        return block
    commands = re.findall(r"(?m)^\$ ((?:.*\\\n)*.*)", block)
    return "\n".join(commands) + "\n"


def mark_copied_text(page: str) -> str:
    """Return the HTML of a page with the attribute `data-copy` on each block that has prompts.

    The theme's copy button copies the value of this attribute.
    """

    def mark(found: re.Match[str]) -> str:
        shown = html.unescape(re.sub(r"<[^>]+>", "", found[0]))
        copied = copied_text(shown)
        if copied == shown:
            return found[0]
        attribute = html.escape(copied).replace("\n", "&#10;")
        return found[0].replace("<div ", f'<div data-copy="{attribute}" ', 1)

    return _BLOCK.sub(mark, page)
