"""What stays on disk: answers, torn lines, names; and the order of questions that follows from them."""

import dataclasses
import json
import multiprocessing
import shlex

import numpy as np
import pytest
import tiny_ratings

from contrique.cli import rate
from contrique.cli.main import build_parser, main
from contrique.rating import session as sessions
from contrique.rating.candidates import RatingError
from contrique.rating.questions import count_questions, list_questions
from contrique.rating.session import SESSION, Answer, Session, Store, check_rater, hold


def answer_to(question, answer=3, part="test"):
    return Answer(question, part, (f"{question}.png",), (False,), answer, 1.5, 1.0, "2026-01-01T00:00:00+00:00")


class TestStore:
    def test_answers_come_back_less_those_taken_back(self, tmp_path):
        store = Store(tmp_path)
        for i in range(3):
            store.append("anna", answer_to(i, i + 1))
        store.undo("anna")
        store.append("anna", answer_to(2, 5))
        assert [answer.answer for answer in Store(tmp_path).read("anna")] == [1, 2, 5]
        assert Store(tmp_path).read("anna") == store.read("anna")
        assert store.raters() == ["anna"]
        assert len((tmp_path / "answers/anna.jsonl").read_text().splitlines()) == 5

    def test_a_torn_line_is_dropped_and_the_next_answer_is_whole(self, tmp_path):
        store = Store(tmp_path)
        store.append("anna", answer_to(0))
        path = tmp_path / "answers/anna.jsonl"
        whole = path.read_bytes()
        line = json.dumps(dataclasses.asdict(answer_to(1))).encode()
        for fragment in (b"{", line[: len(line) // 2], line):
            path.write_bytes(whole + fragment)
            reopened_store = Store(tmp_path)
            assert len(reopened_store.read("anna")) == 1
            reopened_store.append("anna", answer_to(1, 4))
            assert [answer.answer for answer in Store(tmp_path).read("anna")] == [3, 4]
            assert len(path.read_bytes().splitlines()) == 2

    @pytest.mark.parametrize("line", ["{", "[]", '{"question": 0}', json.dumps(dataclasses.asdict(answer_to(7)))])
    def test_a_damaged_line_is_one_clear_error(self, tmp_path, line):
        Store(tmp_path).append("anna", answer_to(0))
        path = tmp_path / "answers/anna.jsonl"
        path.write_text(path.read_text() + line + "\n")
        with pytest.raises(RatingError, match=r"anna\.jsonl: line 2: .*restore"):
            Store(tmp_path).read("anna")

    @pytest.mark.parametrize("action", ["append", "undo"])
    def test_a_disk_that_fails_after_the_line_was_written_makes_no_second_one(self, tmp_path, monkeypatch, action):
        store = Store(tmp_path)
        store.append("anna", answer_to(0))
        with monkeypatch.context() as patch:
            patch.setattr(sessions.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(OSError):
                store.append("anna", answer_to(1)) if action == "append" else store.undo("anna")
        assert store.read("anna") == Store(tmp_path).read("anna")
        assert len(store.read("anna")) == (2 if action == "append" else 0)

    def test_an_answer_is_on_the_disk_before_it_is_confirmed(self, tmp_path, monkeypatch):
        contents = []
        monkeypatch.setattr(
            sessions.os, "fsync", lambda _: contents.append((tmp_path / "answers/b.jsonl").read_bytes())
        )
        Store(tmp_path).append("b", answer_to(0))
        assert b'"question": 0' in contents[0]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "",
        "  ",
        "a/b",
        ".hidden",
        "a\x00b",
        "a\nb/..",
        "x" * 41,
        "<b>",
        "-x",
        "a.b",
        "\u0301anna",
        "a\u0301/b",
        "anna \u0301",
        "\u200danna",
        "anna -\u200d",
    ],
)
def test_names_that_are_no_file_names(name, tmp_path):
    with pytest.raises(RatingError, match="give a name of 1 to 40 letters"):
        check_rater(name)
    with pytest.raises(RatingError):
        Store(tmp_path).append(name, answer_to(0))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_names_of_one_person_are_one():
    assert check_rater(" Anna  Müller ") == check_rater("anna mu\u0308ller") == "anna müller"
    assert check_rater("李雷_2") == "李雷_2"
    assert check_rater("अनीता") == "अनीता"  # two of its vowels are marks, which no single character holds
    assert check_rater("தமிழ் 2") == "தமிழ் 2"
    assert check_rater("ශ්\u200dරීමා") == "ශ්\u200dරීමා"  # its first letter joins two
    assert check_rater("علی\u200cرضا") == "علی\u200cرضا"
    assert check_rater("anna\ufe0f") == check_rater("an\u034fna") == "anna"


def _hold(folder):
    with hold(folder):
        pass


@pytest.mark.parametrize("others", [[], ["ratings/summer/session.json"], ["ratings/holiday/notes.txt"]])
def test_a_session_that_does_not_begin_leaves_no_folder(tmp_path, others):
    before = [tmp_path / name for name in others]
    for path in before:
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(RatingError, match="refused"), hold(tmp_path / "ratings" / "holiday"):
        raise RatingError("refused")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert files == before
    assert (tmp_path / "ratings").exists() == bool(others)


def test_a_session_that_begins_stays(tmp_path):
    with hold(tmp_path / "s"):
        (tmp_path / "s" / SESSION).touch()
    assert (tmp_path / "s" / SESSION).exists()


def test_a_session_has_one_process(tmp_path):
    with hold(tmp_path / "s"), pytest.raises(RatingError, match="another `contrique rate` uses this session"):
        _hold(tmp_path / "s")
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "s",))
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rate") / "pictures"
    tiny_ratings.write(path, 12)
    return path


@pytest.fixture(params=["acr", "pairs"])
def session(request, folder, tmp_path):
    return tiny_ratings.begin(folder, tmp_path / "s", request.param, rounds=4)


def walk(session, rater, answer):
    """All questions of a rater who answers by a function of the pictures shown."""
    answers, questions = [], list_questions(session, rater, [])
    while len(questions) > len(answers):
        question = questions[len(answers)]
        names = tuple(session.pictures[i].image for i, _ in question.items)
        damage_flags = tuple(d for _, d in question.items)
        answers.append(Answer(len(answers), question.part, names, damage_flags, answer(question), 1.0, 1.0, ""))
        assert list_questions(session, rater, answers)[: len(answers)] == questions[: len(answers)]
        questions = list_questions(session, rater, answers)
    return questions


class TestQuestions:
    def test_every_part_is_asked_and_counted(self, session):
        questions = walk(session, "anna", lambda q: 0 if session.method == "pairs" else 3)
        parts = [question.part for question in questions]
        assert len(questions) == count_questions(session)
        assert parts.count("golden") == 3
        assert parts[0] == "training"
        assert "training" not in parts[parts.index("test") :]
        first = {}
        for place, question in enumerate(questions):
            pictures = frozenset(i for i, _ in question.items)
            if question.part == "test":
                first.setdefault(pictures, place)
            if question.part == "repeat":
                assert place > first[pictures] + 1
            assert any(d for _, d in question.items) == (question.part == "golden")
        if session.method == "acr":
            assert parts.count("test") == 12
            assert parts.count("repeat") == 2
        else:
            assert parts.count("test") == 4 * 6
            assert len(first) == 24, "no pair twice"

    def test_order_is_the_raters_own_and_the_seeds(self, session):
        def answer(question):
            return question.items[0][0] % 2

        assert walk(session, "anna", answer) == walk(session, "anna", answer)
        assert walk(session, "anna", answer) != walk(session, "ben", answer)
        other = dataclasses.replace(session, seed=1)
        assert walk(session, "anna", answer) != walk(other, "anna", answer)

    def test_pairs_depend_on_answers(self, folder, tmp_path):
        session = tiny_ratings.begin(folder, tmp_path / "s", "pairs", rounds=4)
        level = [int(picture.image[:3]) % 6 for picture in session.pictures]
        answers = walk(session, "anna", lambda q: int(level[q.items[1][0]] < level[q.items[0][0]]))
        gaps = [abs(level[q.items[0][0]] - level[q.items[1][0]]) for q in answers if q.part == "test"]
        assert np.mean(gaps[-6:]) < np.mean(gaps[:6]), "later rounds compare what is close"


class TestFiles:
    def test_a_session_comes_back(self, session, tmp_path):
        assert Session.load(tmp_path / "s") == session

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            ({"asked": [99]}, "asks about pictures that it does not list"),
            ({"format": 2}, "damaged"),
            ({"method": "quiz"}, "damaged"),
            ({"pictures": "x"}, "damaged"),
        ],
    )
    def test_a_damaged_one_is_one_clear_error(self, session, tmp_path, change, fault):
        path = tmp_path / "s/session.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(RatingError, match=fault):
            Session.load(tmp_path / "s")

    def test_pictures_outside_of_the_folder_are_refused(self, session, tmp_path):
        path = tmp_path / "s/session.json"
        path.write_text(path.read_text().replace("000.png", "../../etc/passwd"))
        with pytest.raises(RatingError, match="leads out of its folder"):
            Session.load(tmp_path / "s")

    def test_none_is_one_clear_error(self, tmp_path):
        with pytest.raises(RatingError, match="no session of `contrique rate`"):
            Session.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--count", "10"], "--count"),
        (["--model", "bundled", "--choose", "random"], "--choose, --model"),
        (["--set", "rating.count=9"], "--set rating.count"),
    ],
)
def test_the_same_command_goes_on_with_the_pictures_of_its_session(session, folder, tmp_path, capsys, options, names):
    session.save(tmp_path / "s")
    arguments = build_parser().parse_args(["rate", str(folder), "--session", str(tmp_path / "s"), *options])
    assert rate._open_session(arguments, tmp_path / "s") == Session.load(tmp_path / "s")
    assert f"goes on with the pictures that it began with, whatever {names} would choose" in capsys.readouterr().err


def test_the_next_command_can_be_pasted(session, folder, tmp_path, capsys):
    place, out = tmp_path / "s", tmp_path / "my own" / "labels.csv"
    out.parent.mkdir()
    session.save(place)
    for number, question in enumerate(
        walk(session, "anna", lambda q: q.items[0][0] % 2 if session.method == "pairs" else 3)
    ):
        names = tuple(session.pictures[i].image for i, _ in question.items)
        flags = tuple(is_damaged for _, is_damaged in question.items)
        answer = question.items[0][0] % 2 if session.method == "pairs" else 1 + question.items[0][0] % 5
        Store(place).append("anna", Answer(number, question.part, names, flags, answer, 1.0, 1.0, ""))
    assert main(["rate", str(folder), "--session", str(place), "--export", str(out)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].partition("next: ")[2]
    words = shlex.split(command)
    assert words[:4] == ["contrique", "adapt", "--labels", str(out)]
    assert words[4:] == ["--images", str(folder), "--out", "my_model"]
