"""What raters are shown and what becomes of their answers, whatever order requests come in."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from contrique import distortions, images
from contrique.config import ServingLimits
from contrique.rating.candidates import RatingError
from contrique.rating.questions import Item, Question, count_questions, list_questions
from contrique.rating.session import Answer, Session, Store, check_rater, now
from contrique.serving.decoder import Decoders

DAMAGE: Final = ("jpeg", 5)  # of the bank: what a golden picture is shown with


class OutOfTurn(RatingError):
    """An answer to a question that is not the rater's next one."""


class UnknownPicture(RatingError):
    """A picture that nobody is asked about."""


class Interview:
    """Asks the raters of a session, each by name, one question after another.

    Args:
        session: what is asked.
        folder: of the session; `hold` it.
        limits: of decoding.
    """

    def __init__(self, session: Session, folder: Path, limits: ServingLimits) -> None:
        self.session = session
        self._store = Store(folder)
        self._decoders = Decoders(limits)
        self._pictures = Path(session.folder)
        items = [(i, False) for i in (*session.asked, *session.training)] + [(i, True) for i in session.golden]
        self._items: dict[str, Item] = {self._key(each): each for each in items}

    def view(self, name: str) -> dict[str, Any]:
        """Where a rater stands: the next question, without what it is for.

        Raises:
            RatingError: no name of a rater, or their file is damaged.
        """
        rater, answers, questions = self._open(name)
        number, total = len(answers), count_questions(self.session)
        following = questions[number : number + 2]
        since = number - sum(question.part == "training" for question in questions[:number])
        return {
            "rater": rater,
            "question": number,
            "total": total,
            "training": bool(following) and following[0].part == "training",
            "pause": bool(following) and since > 0 and since % self.session.break_every == 0,
            "pictures": [self._describe(item) for item in following[0].items] if following else [],
            "ahead": [self._key(item) for item in following[1].items] if len(following) > 1 else [],
        }

    def answer(
        self, name: str, question: int, pictures: Sequence[str], answer: int, seconds: float = 0.0, scale: float = 1.0
    ) -> None:
        """Keep an answer.

        Args:
            name: of the rater.
            question: number of the question, from 0.
            pictures: keys of what was shown.
            answer: 1 to 5; of pairs 0 for the left one, 1 for the right one.
            seconds, scale: as the page measured them.
        Raises:
            OutOfTurn: it is not the next question, or other pictures belong to it.
            RatingError: the answer is none, or it cannot be kept.
        """
        rater, answers, questions = self._open(name)
        self._check_turn(question, len(answers), questions)
        current = questions[question]
        if list(pictures) != [self._key(item) for item in current.items]:
            raise OutOfTurn(f"question {question + 1} shows other pictures; load the page again")
        allowed = (0, 1) if self.session.method == "pairs" else (1, 2, 3, 4, 5)
        if answer not in allowed:
            raise RatingError(f"{answer} is no answer; give one of {', '.join(map(str, allowed))}")
        names = tuple(self.session.pictures[i].image for i, _ in current.items)
        damaged = tuple(damaged for _, damaged in current.items)
        self._store.append(rater, Answer(question, current.part, names, damaged, answer, seconds, scale, now()))

    def undo(self, name: str, question: int) -> None:
        """Take back a rater's last answer.

        Args:
            name: of the rater.
            question: number of the question that is shown, the one after it.
        Raises:
            OutOfTurn: another question is the next one, or nothing was answered.
        """
        rater, answers, _ = self._open(name)
        if question != len(answers):
            raise OutOfTurn(f"question {len(answers) + 1} is the next one, perhaps by another tab; load the page again")
        if not answers:
            raise OutOfTurn("nothing was answered yet")
        self._store.undo(rater)

    def picture(self, key: str) -> bytes:
        """A picture as PNG, its pixels those that the model sees.

        Raises:
            UnknownPicture: nobody is asked about it.
            BadImage, RatingError: it cannot be read any more, or is another one by now.
        """
        if key not in self._items:
            raise UnknownPicture("no picture of this session")
        index, damaged = self._items[key]
        facts = self.session.pictures[index]
        data = images.read_bytes(self._pictures / facts.image)
        if images.content_hash(data) != facts.sha256:
            raise RatingError(f"{facts.image}: changed since the session began; restore it, or begin another session")
        pixels = self._decoders.decode(data, facts.image)
        assert pixels is not None
        if damaged:
            name, level = DAMAGE
            rng = distortions.generator(facts.sha256, name, level, self.session.seed)
            pixels = images.as_uint8(distortions.distort(images.as_float(pixels), name, level, rng))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # seconds of a rater, for a file that is not kept
        return buffer.getvalue()

    def close(self) -> None:
        self._decoders.close()

    def _open(self, name: str) -> tuple[str, list[Answer], list[Question]]:
        rater = check_rater(name)
        answers = self._store.read(rater)
        questions = list_questions(self.session, rater, answers)
        for answer, question in zip(answers, questions, strict=False):
            names = tuple(self.session.pictures[i].image for i, _ in question.items)
            if (answer.part, answer.images) != (question.part, names):
                raise RatingError(f"the answers of '{rater}' are not to this session's questions; restore their file")
        if len(answers) > len(questions):
            raise RatingError(f"the file of '{rater}' has more answers than questions; restore it")
        return rater, answers, questions

    @staticmethod
    def _check_turn(question: int, turn: int, questions: Sequence[Question]) -> None:
        if turn == len(questions):
            raise OutOfTurn("every question is answered")
        if question != turn:
            state = "is answered already, perhaps in another tab" if question < turn else "is not asked yet"
            raise OutOfTurn(f"question {question + 1} {state}; load the page again")

    def _describe(self, item: Item) -> dict[str, Any]:
        facts = self.session.pictures[item[0]]
        return {"key": self._key(item), "width": facts.width, "height": facts.height}

    def _key(self, item: Item) -> str:
        """By what the page asks for a picture: it tells neither its name nor whether it is damaged."""
        index, damaged = item
        text = f"{self.session.seed}:{index}:{damaged}:{self.session.pictures[index].sha256}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]
