"""What a round of rating keeps on disk: what is asked, and every answer of every rater.

A session is a folder with `session.json`, written once, and `answers/RATER.jsonl`, to which each answer is appended as
one line of JSON, on the disk before the next picture is shown. An answer that is taken back stays in the file, followed
by a line that says so. A line that a crash has torn was never confirmed to its rater and is dropped.
"""

import dataclasses
import fcntl
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from annotated_types import Ge, Le

from contrique.errors import one_line
from contrique.files import StorageError, inside, read_regular, room, write_aside
from contrique.rating.candidates import Candidate, RatingError

FORMAT: Final = 1
SESSION: Final = "session.json"
ANSWERS: Final = "answers"
LABELS: Final = ("Bad", "Poor", "Fair", "Good", "Excellent")  # of 1 to 5: ITU-R BT.500-15 and ITU-T P.910
MAX_NAME: Final = 40  # characters of a rater's name
_NAME: Final = re.compile(r"\w[\w -]*")
_LETTER: Final = "x"
_LOCK: Final = ".lock"
_JOINERS: Final = "\u200c\u200d"
_INVISIBLE: Final = re.compile("[\u034f\ufe00-\ufe0f]")  # marks that change nothing of what a name looks like
_MAX_BYTES: Final = 2**28
Method = Literal["acr", "pairs"]
Part = Literal["training", "test", "repeat", "golden"]
Fact = TypeVar("Fact")


@dataclass(frozen=True)
class Session:
    """What is asked; the same for every rater but for the order.

    Attributes:
        folder: of the pictures.
        method: one picture on five steps (`acr`, absolute category rating), or the better one of two (`pairs`).
        seed: of every order.
        model: version that chose the pictures; empty if chance did.
        pictures: all that are asked about.
        asked: indices of `pictures` whose answers count.
        training: indices of those that raters begin with.
        golden: indices of `asked` that are also shown badly damaged.
        repeats: share of the questions that are asked twice.
        rounds: of pairs.
        break_every: questions between two breaks.
        format: version of the file.
    """

    folder: str
    method: Method
    seed: int
    model: str
    pictures: tuple[Candidate, ...]
    asked: tuple[int, ...]
    training: tuple[int, ...]
    golden: tuple[int, ...]
    repeats: float
    rounds: int
    break_every: int
    format: Literal[1] = FORMAT

    def save(self, folder: Path) -> None:
        """Write `session.json`."""
        with write_aside(folder / SESSION) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Session":
        """Read `session.json`.

        Raises:
            RatingError: it is missing or damaged, or names pictures outside of their folder.
        """
        path = folder / SESSION
        if not path.exists():
            raise RatingError(f"{folder}: no session of `contrique rate` (no {SESSION}); give its --session")
        session = _parse(cls, read_regular(path, _MAX_BYTES), str(path))
        try:
            for picture in session.pictures:
                inside(picture.image, str(path))
        except StorageError as error:
            raise RatingError(str(error)) from error
        if any(not 0 <= i < len(session.pictures) for i in (*session.asked, *session.training, *session.golden)):
            raise RatingError(f"{path}: asks about pictures that it does not list; begin another session")
        return session


@dataclass(frozen=True)
class Answer:
    """What a rater said.

    Attributes:
        question: its place in the rater's order, from 0.
        part: what it is for.
        images: the picture, or left and right one.
        damaged: which of them were shown badly damaged.
        answer: 1 to 5; of pairs 0 for the left one and 1 for the right one.
        seconds: from the picture to the answer, as the page measured them.
        scale: pixels of the screen for one of the picture; 1 unless the browser scaled it.
        time: of the answer, UTC.
    """

    question: Annotated[int, Ge(0)]
    part: Part
    images: tuple[str, ...]
    damaged: tuple[bool, ...]
    answer: Annotated[int, Ge(0), Le(5)]
    seconds: float
    scale: float
    time: str


def check_rater(name: str) -> str:
    """A rater's name as it is kept: in lower case, for file systems that do not tell cases apart.

    Raises:
        RatingError: it is empty, too long, or holds more than letters, digits, blanks, - and _.
    """
    key = unicodedata.normalize("NFC", " ".join(_INVISIBLE.sub("", name).split())).casefold()
    # a letter may have marks and joiners that no single character holds, as in many scripts of Asia
    plain = "".join(_LETTER if _belongs_to_letter(key, i) else char for i, char in enumerate(key))
    if not _NAME.fullmatch(plain) or len(os.fsencode(key)) > 4 * MAX_NAME or len(key) > MAX_NAME:
        raise RatingError(
            f"rater '{name[:MAX_NAME]}': give a name of 1 to {MAX_NAME} letters, digits, blanks, - and _, "
            "that begins with a letter or digit"
        )
    return key


def _belongs_to_letter(text: str, i: int) -> bool:
    """Whether a character is a mark or joiner after a letter, or after another one of those."""
    while i > 0 and (text[i] in _JOINERS or unicodedata.category(text[i]).startswith("M")):
        i -= 1
        if text[i].isalpha():
            return True
    return False


class Store:
    """The answers of a session's raters.

    Args:
        folder: of the session.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ANSWERS
        self._answers: dict[str, list[Answer]] = {}

    def raters(self) -> list[str]:
        """Names of all who have answered, sorted."""
        return sorted(path.stem for path in self._folder.glob("*.jsonl"))

    def read(self, rater: str) -> list[Answer]:
        """A rater's answers in the order of the questions, less those that were taken back.

        Raises:
            RatingError: a line is damaged; the last one may be torn.
        """
        if rater not in self._answers:
            self._answers[rater] = self._load(rater)
        return self._answers[rater]

    def append(self, rater: str, answer: Answer) -> None:
        """Keep the answer to the next question; it is on the disk when this returns."""
        answers = self.read(rater)
        with self._reread_on_failure(rater):
            self._write(rater, dataclasses.asdict(answer))
        answers.append(answer)

    def undo(self, rater: str) -> None:
        """Take the last answer back."""
        answers = self.read(rater)
        with self._reread_on_failure(rater):
            self._write(rater, {"undo": answers[-1].question, "time": now()})
        answers.pop()

    @contextmanager
    def _reread_on_failure(self, rater: str) -> Iterator[None]:
        """A write that failed may have reached the file all the same: what is there is looked up, not remembered."""
        try:
            yield
        except BaseException:
            self._answers.pop(rater, None)
            raise

    def _path(self, rater: str) -> Path:
        return self._folder / f"{check_rater(rater)}.jsonl"

    def _load(self, rater: str) -> list[Answer]:
        path = self._path(rater)
        if not path.exists():
            return []
        answers: list[Answer] = []
        whole, _, _ = read_regular(path, _MAX_BYTES).rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            place = f"{path}: line {number}"
            undone = line.startswith(b'{"undo"')
            answer = answers.pop() if undone and answers else _parse(Answer, line, place)
            if not undone:
                answers.append(answer)
            if answer.question != len(answers) - (not undone):
                raise RatingError(f"{place}: an answer before it is missing; restore the file")
        return answers

    def _write(self, rater: str, entry: dict[str, Any]) -> None:
        path = self._path(rater)
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with room(path), path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(json.dumps(entry, ensure_ascii=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(path.parent)


def _cut_torn_line(file: Any) -> None:
    """Remove what stands after the last line break of a file that is open for appending."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - 2**16)
    file.seek(start)
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(kind: type[Fact], data: bytes, place: str) -> Fact:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise RatingError(f"{place}: damaged ({where} {fault['msg']}); restore the file") from error


def now() -> str:
    """The time, UTC, for answers."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a session to this process; the lock goes with the process, however that ends.

    Where none begins, because its pictures are refused, no folder stays.

    Raises:
        RatingError: another process has it, or the folder cannot be written.
    """
    try:
        absent = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a")
    except OSError as error:
        raise RatingError(f"{folder}: cannot be written ({one_line(error)}); give another --session") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RatingError(f"{folder}: another `contrique rate` uses this session; stop it first") from None
        if not os.fstat(file.fileno()).st_nlink:
            raise RatingError(f"{folder}: another `contrique rate` has just ended without a session; try again")
        try:
            yield
        finally:
            if absent and not (folder / SESSION).exists():
                with suppress(OSError):  # a folder that holds something, or is gone: what was refused matters more
                    (folder / _LOCK).unlink()
                    for path in absent:
                        path.rmdir()
