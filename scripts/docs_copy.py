"""Determines what the copy button of a code block copies: the commands, without prompts and without their output."""

import html
import re

_BLOCK = re.compile(r'<div class="(?:language-\S+ )?highlight">(?=<pre>)(?:(?!</pre>).)*</pre></div>', re.DOTALL)


def copied_text(block: str) -> str:
    r"""Return the text that is copied from a code block.

    In a block with prompts (`$ refseg verify shards` and the lines that it printed), this is every line after a prompt
    and the lines that continue it (`\` at the end). Any other block is copied unchanged.
    """
    if not re.search(r"(?m)^\$ ", block):
        return block
    commands = re.findall(r"(?m)^\$ ((?:.*\\\n)*.*)", block)
    return "\n".join(commands) + "\n"


def mark_copied_text(page: str) -> str:
    """Return the HTML of a page with `data-copy`, which the theme's copy button reads, on blocks that have prompts."""

    def mark(found: re.Match[str]) -> str:
        shown = html.unescape(re.sub(r"<[^>]+>", "", found[0]))
        copied = copied_text(shown)
        if copied == shown:
            return found[0]
        attribute = html.escape(copied).replace("\n", "&#10;")
        return found[0].replace("<div ", f'<div data-copy="{attribute}" ', 1)

    return _BLOCK.sub(mark, page)
