"""In which order a rater is asked what: a function of the session, the rater's name and the answers so far."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contrique.rating.session import Answer, Part, Session

Item = tuple[int, bool]  # index of a picture, and whether it is shown badly damaged


@dataclass(frozen=True)
class Question:
    """One screen: a picture to rate, or two to choose from.

    Attributes:
        part: what the answer is for.
        items: the picture, or left and right one.
    """

    part: Part
    items: tuple[Item, ...]


def list_questions(session: Session, rater: str, answers: Sequence[Answer]) -> list[Question]:
    """The questions that are settled by now, the next one among them.

    One picture at a time: all questions. Of pairs, the rounds that are over and the one that is under way: each is
    paired as in a Swiss tournament, pictures of as many wins with each other (so was TID2013 rated).

    Args:
        session: what is asked.
        rater: by name.
        answers: of the rater, the first of them to the first question.
    Returns:
        in order; as long as `answers` if there is nothing left to ask.
    """
    return _list_pairs(session, rater, answers) if session.method == "pairs" else _list_single(session, rater)


def count_questions(session: Session) -> int:
    """How many questions a rater is asked in all."""
    n = len(session.asked)
    if session.method == "acr":
        return len(session.training) + n + len(session.golden) + _count_repeats(n, session)
    pairs = n // 2
    repeats = (session.rounds - 1) * _count_repeats(pairs, session)
    return len(session.training) // 2 + session.rounds * pairs + repeats + len(session.golden)


def _count_repeats(n: int, session: Session) -> int:
    return min(n // 2, math.ceil(session.repeats * n))


def _draw(session: Session, rater: str, number: int = 0) -> np.random.Generator:
    digest = hashlib.sha256(f"{session.seed}:{number}:{rater}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _list_single(session: Session, rater: str) -> list[Question]:
    rng = _draw(session, rater)
    order = [session.asked[i] for i in rng.permutation(len(session.asked))]
    questions = [Question("test", ((i, False),)) for i in order]
    repeats = rng.choice(order[: len(order) // 2], _count_repeats(len(order), session), replace=False)
    # the first half again within the last quarter: nobody remembers the answer
    last = questions[3 * len(order) // 4 :] + [Question("repeat", ((int(i), False),)) for i in repeats]
    questions[3 * len(order) // 4 :] = [last[i] for i in rng.permutation(len(last))]
    for i in session.golden:
        questions.insert(int(rng.integers(len(questions) + 1)), Question("golden", ((i, True),)))
    return [Question("training", ((i, False),)) for i in session.training] + questions


def _list_pairs(session: Session, rater: str, answers: Sequence[Answer]) -> list[Question]:
    ends = zip(session.training, reversed(session.training), strict=True)
    questions = [Question("training", ((a, False), (b, False))) for a, b in list(ends)[: len(session.training) // 2]]
    wins = dict.fromkeys(session.asked, 0)
    met: set[frozenset[int]] = set()
    pairs: list[tuple[int, int]] = []
    for number in range(session.rounds):
        rng = _draw(session, rater, number)
        again = pairs
        pairs = _pair(wins, met, rng)
        questions += _list_round(session, number, pairs, again, rng)
        if len(questions) > len(answers):
            break
        met |= {frozenset(pair) for pair in pairs}
        wins = _count_wins(session, questions, answers)
    return questions


def _list_round(
    session: Session,
    number: int,
    pairs: Sequence[tuple[int, int]],
    again: Sequence[tuple[int, int]],
    rng: np.random.Generator,
) -> list[Question]:
    """The questions of one round: its pairs, some of the round before with sides swapped, and a golden pair."""
    questions = [Question("test", ((a, False), (b, False))) for a, b in pairs]
    questions = [questions[i] for i in rng.permutation(len(questions))]
    for i in rng.permutation(len(again))[: _count_repeats(len(again), session)]:
        repeat = Question("repeat", ((again[i][1], False), (again[i][0], False)))
        questions.insert(int(rng.integers(len(questions) // 2, len(questions) + 1)), repeat)
    for i in session.golden[number :: session.rounds]:
        sides = rng.permutation(2)
        items = ((i, bool(sides[0])), (i, bool(sides[1])))
        questions.insert(int(rng.integers(len(questions) + 1)), Question("golden", items))
    return questions


def _pair(wins: dict[int, int], met: set[frozenset[int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Neighbours by wins that have not met, each on a side by chance; of an odd number one rests."""
    shuffled = [list(wins)[i] for i in rng.permutation(len(wins))]
    waiting = sorted(shuffled, key=lambda i: -wins[i])
    pairs = []
    while len(waiting) > 1:
        first = waiting.pop(0)
        place = next((k for k, other in enumerate(waiting) if frozenset((first, other)) not in met), 0)
        pair = (first, waiting.pop(place))
        pairs.append(pair if rng.integers(2) else pair[::-1])
    return pairs


def _count_wins(session: Session, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[int, int]:
    wins = dict.fromkeys(session.asked, 0)
    for question, answer in zip(questions, answers, strict=False):
        if question.part == "test":
            wins[question.items[answer.answer][0]] += 1
    return wins
