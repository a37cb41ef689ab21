import doctest
import json
import os

import pytest

from contrique import text
from contrique.text import dump_json, escape_control, mask_secrets, shorten


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(text).failed == 0


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("1\r99.9  ok.png", r"1\r99.9  ok.png"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x7f\x85\x9b31m", r"\x7f\x85\x9b31m"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("gnp\u202egpj.exe", r"gnp\u202egpj.exe"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\udce9.png"),
        ("\x00", r"\x00"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(raw, expected):
    assert escape_control(raw) == expected
    escape_control(raw).encode()


@pytest.mark.parametrize("name", ["café.png", "写真 1.jpg", "C:\\new\\table", "👩\u200d🚀.png", "می\u200cخواهم", ""])
def test_ordinary_text_stays(name):
    assert escape_control(name) == name


def test_newlines_of_a_message_can_stay():
    assert escape_control("first\nsecond\x1b\r", keep="\n") == "first\nsecond\\x1b\\r"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("http://people:s3cret@127.0.0.1:5000", "http://***@127.0.0.1:5000"),
        ("postgresql+psycopg2://people:s3cret/s3cret@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("postgresql://people:s3cret@s3cret/s3cret?s3cret#s3cret@db/mlflow", "postgresql://***@db/mlflow"),
        ("https://ghp_s3cret@github.com/a/b.git", "https://***@github.com/a/b.git"),
        ("https://s3cret:x-oauth-basic@github.com", "https://***@github.com"),
        ("ftp://:s3cret@host and s3://k:s3cret@bucket", "ftp://***@host and s3://***@bucket"),
        ("https://a:s3cret@h,https://b:s3cret@h", "https://***@h,https://***@h"),
        ("GET /x?page=1&token=s3cret&n=2", "GET /x?page=1&token=***&n=2"),
        ("https://h/?X-Amz-Security-Token=s3cret%2F&X-Amz-Signature=s3cret", None),
        ("host=db user=people password='s3cret s3cret' port=1", "host=db user=people password=*** port=1"),
        ("AWS_SECRET_ACCESS_KEY=s3cret/s3cret+= set", "AWS_SECRET_ACCESS_KEY=*** set"),
        ("""{"secret_key": "s3cret, s3cret", 'password': 's3cret"s3cret', "n": 1}""", None),
        ("Authorization: Bearer s3cret.s3cret-s3cret", "Authorization: Bearer ***"),
        ("Authorization: Basic cGVvcGxlOnMzY3JldA==", "Authorization: Basic ***"),
        ("?sig=s3cret&api-key=s3cret", "?sig=***&api-key=***"),
        ("http://h/?token=s3cret: refused", "http://h/?token=***: refused"),
        ("?next=http%3A//h/%3Ftoken%3Ds3cret", "?next=http%3A//h/%3Ftoken%3D***"),
    ],
)
def test_secrets_are_hidden(raw, expected):
    output = mask_secrets(raw)
    assert "3cret" not in output
    assert "cGVv" not in output
    assert expected is None or output == expected
    assert mask_secrets(output) == output


@pytest.mark.parametrize(
    "text",
    [
        'could not translate host name "s3cret@127.0.0.1" to address',
        "password s3cret was refused",
        "no user of that name: s3cret:s3cret",
        "quoted s3cret@s3cret/s3cret",
    ],
)
@pytest.mark.parametrize(
    "address", ["postgresql://people:s3cret@s3cret/s3cret@db/mlflow", "http://s3cret@h", "http://p:s3cret%40s3cret@h"]
)
def test_pieces_of_a_password_that_a_library_took_apart_are_hidden(text, address):
    assert "s3cret" not in mask_secrets(text, address)
    assert mask_secrets("people of db, mlflow, h", address) == "people of db, mlflow, h"


@pytest.mark.parametrize(
    "plain",
    [
        "http://localhost:5000 and sqlite:////home/a@b/mlflow.db",
        "s3://bucket/sky@2x.png",
        "unexpected token: 'x'; a basic set of pictures, mail a@b.org",
        "git@github.com:org/repo.git",
        "the bearer of the alias is version=3",
    ],
)
def test_what_is_no_secret_stays(plain):
    assert mask_secrets(plain) == plain


def test_a_long_text_takes_no_time_to_speak_of():
    """The patterns do not backtrack: a text of a megabyte that nearly fits them."""
    for part in ("://a:", "token='", '"token": "', "bearer ", "://"):
        mask_secrets(part * 100_000)


@pytest.mark.parametrize(
    "name", ["a\x1b[2J\x9b31m", "a\u202egnp.exe", "a\nb\u2028c\x7f", "\udcff.png", "über 写真.png"]
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_on_a_terminal_is_read_and_not_obeyed(name, indent):
    text = dump_json([{"path": name}], indent)
    assert json.loads(text) == [{"path": name}]
    assert escape_control(text, keep="\n") == text
    assert "写" not in name or "写" in text


def test_a_text_is_shortened_in_its_middle():
    assert shorten("a" * 50 + "z" * 50, 32) == "a" * 17 + " ... " + "z" * 10
    assert shorten("short", 32) == "short"
