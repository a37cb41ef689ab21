"""The one base class of every failure that a user can cause and mend."""


class ContriqueError(Exception):
    """An expected failure: its message names the file or value and the remedy.

    The command line prints the message alone and exits with `exit_status`; anything else is a bug and
    keeps its traceback.
    """

    exit_status = 2


def one_line(error: BaseException, limit: int = 500) -> str:
    """What an error says, in one line of at most `limit` characters; its type if it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
