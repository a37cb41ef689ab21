"""The served model's script: what it answers, and that nothing a client sends makes it raise."""

import base64
import importlib.util
import json
import logging
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import bad_inputs
import mlflow
import numpy as np
import pandas as pd
import pytest
import tiny_model
from mlflow.exceptions import MlflowException

from contrique import images
from contrique.config import ServingLimits
from contrique.integrity import hash_model
from contrique.registry.model_server import _start_server, _wait_until_up
from contrique.scoring.results import CSV_COLUMNS, TEXT_COLUMNS, Failure
from contrique.scoring.scorer import TOLERANCE, Scorer
from contrique.serving.request import Turns

SCRIPT = Path(__file__).parents[2] / "contrique" / "serving" / "mlflow_model.py"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_model.build(tmp_path_factory.mktemp("model") / "parts")


def load_script():
    spec = importlib.util.spec_from_file_location("quality_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_model(script, parts):
    model = script.QualityModel()
    artifacts = {"encoder": str(parts.encoder), "regressor": str(parts.regressor)}
    hashes = hash_model(parts.encoder, parts.regressor)
    model.load_context(SimpleNamespace(artifacts=artifacts, model_config=hashes))
    return model


@pytest.fixture(scope="module")
def script():
    return load_script()


@pytest.fixture(scope="module")
def model(script, parts):
    return load_model(script, parts)


def ask(model, values):
    return model.predict(None, pd.DataFrame({"image": pd.Series(values, dtype=object)}))


def test_the_corpus_in_base64(model, parts, tmp_path):
    """Each answer is that of the scorer, and good JSON; a bad image fails no neighbour."""
    paths = [path for path in bad_inputs.build(tmp_path / "corpus") if path.is_file()]
    paths = paths[: ServingLimits().max_images]
    answer = ask(model, [base64.b64encode(path.read_bytes()).decode() for path in paths])
    assert list(answer.columns) == [name for name in CSV_COLUMNS if name != "path"]
    scorer = Scorer(parts.encoder, parts.regressor)
    failures = 0
    for i, (path, row) in enumerate(
        zip(paths, json.loads(json.dumps(answer.to_dict("records"), allow_nan=False)), strict=True)
    ):
        expected = scorer.judge(path.read_bytes(), f"image {i}", ServingLimits().max_pixels)
        if isinstance(expected, Failure):
            failures += 1
            assert (row["error"], row["score"]) == (expected.error, None)
        else:
            assert (row["error"], row["score"], row["direction"]) == (None, expected.score, "higher is better")
    assert 10 < failures < len(paths) - 10


def test_limits_fail_what_is_over_them_alone(model, monkeypatch):
    good = images.encode_png(tiny_model.picture(0))
    wide = images.encode_png(tiny_model.picture(0, 80, 200))
    turns = Turns(ServingLimits(max_images=5, max_bytes=len(good) + 9, max_pixels=80 * 100))
    monkeypatch.setattr(model, "_turns", turns)
    heavy = good + bytes(100)
    answer = ask(model, [good, wide[: len(good)], heavy, base64.b64encode(heavy).decode(), good, good, "x" * 10**6])
    errors = [str(error) for error in answer["error"]]
    assert errors[0] == errors[4] == "None"
    assert "200x80 is over 0.008 megapixels" in errors[1]
    assert all("MB; send it smaller" in error for error in errors[2:4])
    assert all("over 5 images a request" in error for error in errors[5:])
    assert answer["score"][0] == answer["score"][4]
    turns.close()


@pytest.mark.parametrize("value", [None, 3, 2.5, float("nan"), [], {}, "", "!!", "AAAA", b"", "ä", "A"])
def test_anything_that_is_no_image_is_an_error_of_its_row(model, value):
    good = images.encode_png(tiny_model.picture(0))
    answer = ask(model, [good, value, good])
    assert answer["score"][0] == answer["score"][2] is not None
    assert answer["score"][1] is None
    assert answer["error"][1].startswith("image 1: ")
    assert "Traceback" not in answer["error"][1]


def test_a_fault_of_the_server_is_told_in_its_log_and_not_to_the_client(model, caplog, monkeypatch):
    """The machine runs out of memory on one of three pictures."""
    good = images.encode_png(tiny_model.picture(0))
    calls = []

    def judge(pixels, name, real=model._scorer.judge_pixels):
        calls.append(name)
        if len(calls) == 2:
            raise MemoryError("secret path /srv/model")
        return real(pixels, name)

    monkeypatch.setattr(model._scorer, "judge_pixels", judge)
    with caplog.at_level(logging.ERROR):
        answer = ask(model, [good, good, good])
    assert answer["error"][1] == "image 1: could not be scored (an error of the server; see its log)"
    assert [row is None for row in answer["error"]] == [True, False, True]
    assert "secret path" in caplog.text


def test_a_request_without_the_column_is_mlflows_own_kind_of_error(model):
    """Of any other kind MLflow's server would send the stack trace to the client."""
    with pytest.raises(MlflowException, match="needs a column 'image'") as error:
        model.predict(None, pd.DataFrame({"picture": ["x"]}))
    assert error.value.get_http_status_code() == 400
    assert "Traceback" not in error.value.serialize_as_json()


def test_clients_at_once_get_their_own_answers(model, parts):
    pictures = [tiny_model.picture(i) for i in range(6)]
    expected = Scorer(parts.encoder, parts.regressor).score(pictures)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda picture: ask(model, [images.encode_png(picture)])["score"][0], pictures * 3))
    np.testing.assert_allclose(answers, np.tile(expected, 3), rtol=0, atol=TOLERANCE)


def post(address, body, deadline=120):
    """Status and text of an answer, whatever the status."""
    request = urllib.request.Request(f"{address}/invocations", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=deadline) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_mlflows_server_answers_with_the_contract_and_never_with_a_stack_trace(parts, tmp_path):
    columns = [
        mlflow.types.ColSpec("string" if name in TEXT_COLUMNS else "double", name, required=False)
        for name in CSV_COLUMNS[1:]
    ]
    mlflow.pyfunc.save_model(
        tmp_path / "saved",
        python_model=str(SCRIPT),
        artifacts={"encoder": str(parts.encoder), "regressor": str(parts.regressor)},
        model_config=hash_model(parts.encoder, parts.regressor),
        signature=mlflow.models.ModelSignature(
            inputs=mlflow.types.Schema([mlflow.types.ColSpec("string", "image")]),
            outputs=mlflow.types.Schema(columns),
        ),
        pip_requirements=[],
    )
    good = base64.b64encode(images.encode_png(tiny_model.picture(0))).decode()

    def rows(*values, column="image"):
        return json.dumps({"dataframe_split": {"columns": [column], "data": [[value] for value in values]}}).encode()

    expected = Scorer(parts.encoder, parts.regressor).judge(base64.b64decode(good), "x").score
    with _start_server(str(tmp_path / "saved"), f"sqlite:///{tmp_path}/none.db", tmp_path / "log") as (
        server,
        address,
    ):
        _wait_until_up(server, address, time.monotonic() + 240)
        status, text = post(address, rows(good, "!", good[:400], "", good, base64.b64encode(b"GIF89a").decode()))
        answers = json.loads(text)["predictions"]
        refusals = [
            post(address, body)
            for body in (b"", b"{", b"[]", b'{"dataframe_split": 3}', rows(good, column="picture"), rows(3), rows(None))
        ]
        after, _ = post(address, rows(good))
    assert (status, after) == (200, 200)
    assert [row["score"] for row in answers] == pytest.approx(
        [expected, None, None, None, expected, None], abs=TOLERANCE
    )
    assert [bool(row["error"]) for row in answers] == [False, True, True, True, False, True]
    assert all(set(row) == set(CSV_COLUMNS[1:]) for row in answers)
    for code, message in [(status, text), *refusals]:
        assert code < 500
        assert "Traceback" not in message
        assert "site-packages" not in message
    assert all(code >= 400 for code, _ in refusals[:5])
