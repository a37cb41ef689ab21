"""Text for people: what could be obeyed is shown instead, by terminals and in Markdown, and secrets are hidden.

HTML is escaped by the templates (`pages`), cells of CSV by `scoring.results.escape_cell`.
"""

import json
import re
import unicodedata
from typing import Any
from urllib.parse import unquote

_UNSAFE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: controls, halves of surrogate pairs, separators of lines
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
MASK = "***"
_PIECE_CHARS = 4  # a shorter piece of a password is part of many words

# What stands before the last @ of an address: a user, a token, or a user and a password, which may hold : / ? # and @.
_USERINFO = re.compile(r"(?<=://)(?:[^\s:/?#@]*:(?:(?!://)\S)*|[^\s/?#]*)@")
# name=value, as in a query or a connection string, and "name": "value", as in JSON or a repr.
_NAME = r"token|secret|password|passwd|passphrase|pwd|signature|sig|credentials?|(?:api|access|secret|private)[-_]?key"
_ASSIGNMENT = re.compile(
    rf"(?i)((?:{_NAME})(?:=|%3d))(?!\*)(?:\"[^\"]*\"|'[^']*'|[^\s&;,'\"<>)\]}}]*[^\s&;,'\"<>)\]}}:])"
)
_ITEM = re.compile(rf"(?i)((?:{_NAME})(?P<name>[\"'])\s*:\s*(?P<value>[\"']))(?:(?!(?P=value)).)*")
_HEADER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}")


def escape_control(text: str, keep: str = "") -> str:
    r"""Text that a terminal, a log or a table shows as it is and never obeys.

    Control characters (ESC, CR, newline, tab, ...), marks that reorder text, separators of lines and paragraphs and
    bytes of a file name that are not UTF-8 become `\x1b`, `\n`, `\u202e`, ... ; everything else stays, also other
    scripts and backslashes.

    Args:
        text: any string, also one that cannot be encoded.
        keep: characters that stay, such as "\n" for a message of several lines.

    >>> print(escape_control("sky\x1b[2J\rkitchen.png"))
    sky\x1b[2J\rkitchen.png
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in keep or not _is_unsafe(char) else char.encode("unicode_escape").decode() for char in text
    )


def dump_json(value: Any, indent: int | None = None) -> str:
    r"""JSON that a terminal shows as it is and never obeys; every script stays readable.

    >>> print(dump_json("\u00fc\x9b2J\u202e"))
    "ü\u009b2J\u202e"
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{ord(char):04x}" if char != "\n" and _is_unsafe(char) else char for char in text)


class Markdown(str):
    """Text that is Markdown already."""


# An address becomes a link without any mark; entities keep it text for every renderer, and $ from being mathematics.
_ENTITIES = {char: f"&#{ord(char)};" for char in "<>&$@"}
_MARKS = {char: f"\\{char}" for char in "\\`*_[]{}#!|~^"}
_IN_LINE = str.maketrans(_ENTITIES | _MARKS)
_AT_START = re.compile(r"[-+=:](?!\d)|\d+(?=[.)](?:\s|$))")
_LINK = re.compile(r"(?i)(?<=\w):(?=//)|(?<=\bwww)\.")


def escape_markdown(text: str) -> Markdown:
    r"""Text of one line that Markdown shows as it is, in a paragraph, a list, a heading or a cell of a table.

    Headings, links (also those without a mark, such as www.example.org), images, HTML, code and mathematics in it are
    none. Control characters are shown, as `escape_control` shows them; stretches of white space become one space.

    >>> print(escape_markdown("# [a](https://b.test) <img src=x> $x$"))
    \# \[a\](https&#58;//b.test) &#60;img src=x&#62; &#36;x&#36;
    """
    if isinstance(text, Markdown):
        return text
    line = escape_control(" ".join(text.split())).translate(_IN_LINE)
    line = _LINK.sub(lambda match: f"&#{ord(match[0])};", line)
    if start := _AT_START.match(line):
        mark = start.end() if start[0].isdigit() else 0  # of "1." it is the point that makes a list
        line = f"{line[:mark]}\\{line[mark:]}"
    return Markdown(line)


def count_noun(number: int, noun: str) -> str:
    """A number of things: "1 content", "2 contents"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shorten(text: str, limit: int) -> str:
    """Text of at most `limit` characters: the middle goes, for names and reasons stand first and remedies last."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 5]} ... {text[-tail:]}"


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in _UNSAFE or char in _BIDIRECTIONAL


def mask_secrets(text: str, address: str = "") -> str:
    """Text for logs, errors and pages: secrets in it become `***`.

    Hidden are what stands before the @ of an address (`scheme://user:password@host`, `https://TOKEN@host`), values of
    secret names (`?token=...`, `password=...`, `X-Amz-Signature=...`, `"api_key": "..."`) and the value of an
    Authorization header. Where it is unclear how far a password reaches, more is hidden rather than less.

    Args:
        text: any string.
        address: what a library was given, and may have taken apart: pieces of its password are hidden wherever they
            stand in the text.

    >>> mask_secrets("https://user:p@ss@host/repo?token=abc&page=2")
    'https://***@host/repo?token=***&page=2'
    """
    text = _USERINFO.sub(f"{MASK}@", text)
    text = _ASSIGNMENT.sub(rf"\1{MASK}", text)
    text = _ITEM.sub(rf"\1{MASK}", text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    for piece in sorted(_split_password(address), key=len, reverse=True):
        text = text.replace(piece, MASK)
    return text


def _split_password(address: str) -> set[str]:
    """Pieces of the secret before the @ of an address, at the characters at which libraries take addresses apart."""
    userinfo = "".join(match.group()[:-1] for match in _USERINFO.finditer(address))
    secret = userinfo.partition(":")[2] or userinfo
    pieces = {secret, unquote(secret), *re.split(r"[:@/?#]", secret), *re.split(r"[:@/?#]", unquote(secret))}
    return {piece for piece in pieces if len(piece) >= _PIECE_CHARS}
