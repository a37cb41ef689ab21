"""Where a command ends: its errors become one line and an exit status."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from contrique.cli.options import UsageError
from contrique.errors import ContriqueError, one_line
from contrique.files import check_writable
from contrique.text import escape_control, mask_secrets

INTERRUPTED = 128 + 2
PIPE_CLOSED = 128 + 13
_MEMORY = ("not enough memory", "out of memory")  # in errors of PyTorch


def run_command(
    build_parser: Callable[[], argparse.ArgumentParser], arguments: Sequence[str] | None, prefix: str
) -> int:
    """Parse a command line and call its function.

    Args:
        build_parser: the parser; its commands set the default `command`, a function of the parsed options that returns
            an exit status, or None for 0.
        arguments: without the program's name; those of the process by default.
        prefix: of an error's line on stderr.
    Returns:
        the exit status: of the command, or of its error; 2 for memory and for files that cannot be read or written.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        if sys.stdout is None:
            raise UsageError("standard output is closed; redirect it to a file or to /dev/null")
        with _hide_warnings():
            options = build_parser().parse_args(arguments)
            _check_outputs(options)
            status: int = options.command(options) or 0
            sys.stdout.flush()
        return status
    except ContriqueError as error:
        text = "; ".join([str(error), *getattr(error, "__notes__", ())])
        return _report(prefix, text, error.exit_status, keep="\n")
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _discard(sys.stdout)
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _report(prefix, "interrupted", INTERRUPTED)
    except OSError as error:
        name = error.filename or ("standard output" if _discard_unwritable(sys.stdout) else "")
        place = f"{name}: " if name else ""
        return _report(prefix, f"{place}{error.strerror or one_line(error)}; check the place and its permissions")
    except (MemoryError, RecursionError) as error:
        return _report(prefix, _describe_limit(error))
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in _MEMORY):
            raise
        return _report(prefix, _describe_limit(error))


def _check_outputs(options: argparse.Namespace) -> None:
    for name, folder in getattr(options, "outputs", ()):
        path = getattr(options, name)
        if path is not None:
            check_writable(path, folder=folder)


@contextmanager
def _hide_warnings() -> Iterator[None]:
    """Warnings of libraries are for developers: `python -W default` or PYTHONWARNINGS shows them."""
    if sys.warnoptions:
        yield
        return
    sys.warnoptions.append("ignore")  # multiprocessing passes these on
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.warnoptions.remove("ignore")


def _report(prefix: str, message: str, status: int = ContriqueError.exit_status, keep: str = "") -> int:
    if sys.stderr is not None:  # closed by the caller
        print(f"{prefix}: {escape_control(mask_secrets(message), keep=keep)}", file=sys.stderr)
    return status


def _describe_limit(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; check the file that was read"
    return f"not enough memory ({one_line(error, 200)}); use smaller pictures or fewer workers"


def _discard_unwritable(stream: TextIO) -> bool:
    """Whether a stream cannot be written; what it holds is then discarded, or the interpreter would fail on exit."""
    try:
        stream.flush()
    except OSError:
        _discard(stream)
        return True
    return False


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
