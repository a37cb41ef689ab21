"""The one base class of every failure that a user can cause and mend."""

from typing import ClassVar

from contrique.text import escape_control, mask_secrets, shorten

_MAX_CHARS = 2000  # of a message of one line


class ContriqueError(Exception):
    """An expected failure: its message names the file or value and the remedy, in one line.

    Names and addresses in it may be anybody's: passwords and tokens are hidden, control characters, line breaks among
    them, are escaped, and a message of over 2,000 characters loses its middle.

    The command line prints the message alone and exits with `exit_status`; anything else is a bug and
    keeps its traceback.

    Args:
        message: what happened, and the remedy.
    """

    exit_status = 2
    has_lines: ClassVar[bool] = False  # whether its messages may have several lines

    def __init__(self, message: str = "") -> None:
        text = escape_control(mask_secrets(message), keep="\n" if self.has_lines else "")
        super().__init__(text if self.has_lines else shorten(text, _MAX_CHARS))


def one_line(error: BaseException, limit: int = 500) -> str:
    """What an error says, in one line of at most `limit` characters; its type if it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
