"""Messages of errors: one line that a terminal does not obey, of a bearable length."""

import pickle

import pytest

from contrique.errors import ContriqueError
from contrique.images import BadImage
from contrique.tracking.store import RegistryError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a\nscore 99 a.png", r"a\nscore 99 a.png"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\u2028b\u202egnp", r"a\u2028b\u202egnp"),
    ],
)
def test_a_name_cannot_forge_a_line(name, text):
    error = BadImage(f"{name}: the file is empty; replace it")
    assert str(error) == f"{text}: the file is empty; replace it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_long_message_loses_its_middle_and_keeps_name_and_remedy():
    message = str(ContriqueError("labels.csv: has the columns " + "x" * 10**6 + "; rename them"))
    assert len(message) == 2000
    assert message.startswith("labels.csv: has the columns xxx")
    assert message.endswith("xxx; rename them")


def test_the_log_of_a_server_has_lines_and_no_controls():
    assert str(RegistryError("cannot be served\n  a\x1b[2J")) == "cannot be served\n  a\\x1b[2J"


@pytest.mark.parametrize(
    "address",
    ["https://me:s3cret@host/x", "s3://TOKEN-s3cret@bucket", "http://h/x?token=s3cret", "postgresql://u:p@s3cret@h/d"],
)
@pytest.mark.parametrize("kind", [ContriqueError, BadImage, RegistryError])
def test_no_error_repeats_a_secret(kind, address):
    message = str(kind(f"{address}: cannot be reached; check the address"))
    assert "s3cret" not in message
    assert message.endswith("check the address")
