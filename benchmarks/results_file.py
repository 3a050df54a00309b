"""RESULTS.md, of which each benchmark writes its own section."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
WIDTH = 120


def write_section(title: str, text: str, *, file: Path = RESULTS) -> None:
    """Put `text` under the heading ``## title``: in the place of what is there, or at the end.

    A section goes up to the next heading of its level; what is not of it stays as it is.
    """
    section = f"## {title}\n\n{text.strip()}\n"
    before = file.read_text()
    there = re.compile(rf"^## {re.escape(title)}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    found = there.search(before)
    if found is None:
        file.write_text(f"{before.rstrip()}\n\n{section}")
        return
    after = before[found.end() :]
    file.write_text(before[: found.start()] + section + (f"\n{after}" if after else ""))


def wrapped(text: str) -> str:
    """Return a paragraph in lines of at most `WIDTH` characters; nothing is split at a hyphen."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)
