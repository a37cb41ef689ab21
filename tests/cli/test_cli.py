import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny_model
from PIL import Image

from contrique import __version__, images
from contrique.cli.main import main
from contrique.config import RegistryConfig, SynthesisConfig
from contrique.data.manifest import read_manifest, read_picture, rows_of, write_manifest
from contrique.data.synthesis import synthesize
from contrique.distortions import NAMES
from contrique.encoder.features import extract
from contrique.encoder.weights import load_encoder, read_metadata
from contrique.registry.registration import register
from contrique.scoring.scorer import TOLERANCE, Scorer
from contrique.sources.folders import Source, import_folder

HEAVY = {"torch", "torchvision", "mlflow", "kfp", "great_expectations", "dvc", "sklearn", "numpy", "pandas", "PIL"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_model.build(tmp_path_factory.mktemp("model") / "parts")


@pytest.fixture(scope="module")
def house(tmp_path_factory, parts):
    """A working directory with a registry of two versions."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        for run, champion in (("monday", ""), ("tuesday", "1")):
            register(tiny_model.candidate(parts, champion), config=RegistryConfig(serve_seconds=0), run=run)
    return folder


@pytest.fixture
def home(house, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(house)
    return house


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(tiny_model.picture(i)).save(folder / f"{i}.png")
    return folder


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_help_is_instant_because_it_imports_nothing_heavy():
    script = "import sys; from contrique.cli.main import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "score pictures" in process.stdout
    assert not HEAVY & set(process.stdout.split())


@pytest.mark.parametrize(
    "command",
    [
        "score",
        "features",
        "models",
        "history",
        "promote",
        "rollback",
        "distort",
        "synthesize",
        "validate",
        "pretrain",
        "serve",
        "disagree",
        "gaming",
    ],
)
def test_each_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as error:
        call(command, "--help")
    assert error.value.code == 0
    assert f"example:\n  contrique {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        call("--version")
    assert capsys.readouterr().out == f"contrique {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["score"], ["paint"], ["score", "a.png", "--format", "xml"]])
def test_usage_errors_are_one_line_and_status_2(arguments, capsys):
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("contrique: ")
    assert "--help`" in error
    assert error.count("\n") == 1


def test_score_json(home, photographs, parts, capsys):
    assert call("score", photographs, "--format", "json") == 0
    items = json.loads(capsys.readouterr().out)
    expected = Scorer(parts.encoder, parts.regressor).score([tiny_model.picture(i) for i in range(3)])
    assert [item["path"] for item in items] == [str(photographs / f"{i}.png") for i in range(3)]
    assert [item["score"] for item in items] == pytest.approx(list(expected), abs=TOLERANCE)  # here in a batch
    assert {item["model"] for item in items} == {"2"}
    assert {item["direction"] for item in items} == {"higher is better"}


def test_score_goes_on_after_a_bad_file(home, photographs, capsys):
    (photographs / "1.png").write_bytes(b"broken")
    assert call("score", photographs, photographs / "9.png", "--format", "csv", "--model", "previous") == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert [row["model"] for row in rows] == ["1", "", "1", ""]


def test_score_table_by_version(home, photographs, capsys):
    assert call("score", f"{photographs}/[01].png", "--model", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("2 scored, 0 failed | scale 0 to 100, higher is better | model 1")


@pytest.mark.parametrize("choice", ["7", "best"])
def test_score_with_a_model_that_is_not_there(home, photographs, capsys, choice):
    assert call("score", photographs, "--model", choice) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"contrique: model 'contrique' has no version '{choice}'; see `contrique models`")
    assert err.count("\n") == 1


def test_without_a_champion(tmp_path, monkeypatch, photographs, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert call("score", photographs, "--model", "champion") == 2
    assert "run the pipeline first, or set MLFLOW_TRACKING_URI" in capsys.readouterr().err
    assert call("models") == 0
    assert "no model is registered yet" in capsys.readouterr().out
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(home, photographs):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "contrique.cli", "score", str(photographs)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert process.returncode == 141
    assert "Traceback" not in process.stderr


def test_the_registry_commands(home, capsys):
    assert call("models", "--format", "json") == 0
    versions = json.loads(capsys.readouterr().out)
    assert [(item["version"], item["aliases"]) for item in versions] == [("2", ["champion"]), ("1", ["previous"])]
    assert call("rollback", "--reason", "drifts") == 0
    assert capsys.readouterr().out == "version 1 of 'contrique' is champion again\n"
    assert call("promote", "2", "--reason", "better after all") == 0
    assert capsys.readouterr().out == "version 2 of 'contrique' is champion\n"
    assert call("history") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["register", "register", "rollback", "promote"]
    assert lines[-1].endswith("better after all")
    assert call("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["version", "alias", "SRCC"]
    assert lines[1].split()[:3] == ["2", "champion", "0.8000"]
    assert call("promote", "9") == 2
    assert "no version '9'" in capsys.readouterr().err
    assert call("models", "--set", "registry.model=other") == 0
    assert "no model is registered yet" in capsys.readouterr().out


def test_where_to_publish_is_checked_before_training(home, tmp_path, capsys):
    folders = ["--pristine", str(tmp_path), "--authentic", str(tmp_path), "--out", str(tmp_path / "run")]
    assert call("pretrain", *folders, "--publish", "here") == 2
    assert "--publish here: expected s3://BUCKET/PREFIX" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --pristine and --authentic folders of photographs, or else a --dataset"),
        (["--pristine", "p"], "give both --pristine and --authentic"),
        (["--pristine", "p", "--authentic", "a", "--dataset", "d"], "or else a --dataset"),
        (["--pristine", "p", "--authentic", "a", "--distorted", "d"], "--distorted goes with --dataset"),
        (["--pristine", "p", "--authentic", "a", "--minutes", "0"], "argument --minutes: 0: give more than 0"),
    ],
)
def test_what_to_pretrain_on_is_one_or_the_other(home, tmp_path, capsys, arguments, message):
    assert call("pretrain", *arguments, "--out", str(tmp_path / "run")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_settings_are_checked(home, capsys):
    assert call("models", "--set", "registry.model") == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err
    assert call("models", "--set", "registry.colour=red") == 2
    assert "unknown option 'registry.colour'" in capsys.readouterr().err


def test_features(photographs, parts, tmp_path):
    out = tmp_path / "features.npz"
    assert call("features", photographs / "2.png", photographs / "0.png", "--encoder", parts.encoder, "--out", out) == 0
    with np.load(out, allow_pickle=False) as file:
        assert set(file) == {"features", "images"}
        assert list(file["images"]) == [str(photographs / "2.png"), str(photographs / "0.png")]
        expected = extract([tiny_model.picture(2), tiny_model.picture(0)], load_encoder(parts.encoder))
        assert file["features"].shape == (2, 1024)
        np.testing.assert_array_equal(file["features"], expected)


def test_features_names_the_file_that_cannot_be_used(photographs, parts, tmp_path, capsys):
    out = tmp_path / "features.npz"
    (photographs / "1.png").write_bytes(images.encode_png(tiny_model.picture(0, 40, 100)))
    for path, why in ((photographs, "1.png: 100x40 is under 64"), (photographs / "7.png", "7.png: no such file")):
        assert call("features", path, "--encoder", parts.encoder, "--out", out) == 2
        assert why in capsys.readouterr().err
    assert call("features", photographs / "0.png", "--encoder", photographs / "0.png", "--out", out) == 2
    assert "0.png: not a readable safetensors file" in capsys.readouterr().err
    assert not out.exists()


def test_distort(photographs, tmp_path, capsys):
    picture, outs = photographs / "0.png", [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for out, seed in zip(outs, (5, 5, 6), strict=True):
        assert call("distort", picture, "--name", "white_noise", "--level", 3, "--seed", seed, "--out", out) == 0
    a, b, c = (out.read_bytes() for out in outs)
    assert a == b != c
    difference = images.read(outs[0]).astype(float) - images.read(picture)
    assert 5 < difference.std() < 15  # variance .003 of the unit range is 14 grey levels, less what is clipped
    assert call("distort", picture, "--name", "wobble", "--level", 3, "--out", outs[0]) == 2
    error = capsys.readouterr().err
    assert "wobble" in error
    assert all(name in error for name in NAMES)
    assert call("distort", picture, "--name", "jpeg", "--level", 6, "--out", outs[0]) == 2
    assert call("distort", picture, "--name", "jpeg") == 2
    assert "give --name, --level and --out" in capsys.readouterr().err


def test_a_distorted_picture_is_the_one_that_synthesis_makes(photographs, tmp_path):
    out = tmp_path / "one.png"
    assert call("distort", photographs / "1.png", "--name", "jitter", "--level", 2, "--seed", 4, "--out", out) == 0
    assert (
        call(
            *("synthesize", photographs, "--out", tmp_path / "set", "--seed", 4, "--workers", 1),
            *("--set", 'synthesis.distortions=["jitter"]', "--set", "synthesis.levels=[2]"),
            *("--set", "synthesis.weak_labels_per_photograph=1"),
        )
        == 0
    )
    rows = [row for row in rows_of(read_manifest(tmp_path / "set")) if row.reference.endswith("1.png") and row.level]
    assert len(rows) == 1
    np.testing.assert_array_equal(images.read(out), read_picture(tmp_path / "set", rows[0]))


def test_sheet(photographs, tmp_path):
    out = tmp_path / "sheet.png"
    assert call("distort", photographs / "0.png", "--sheet", out) == 0
    height, width, _ = images.read(out).shape
    assert height > 5 * 80
    assert width > 5 * 96


def test_synthesize_takes_a_folder_as_a_picture_set(photographs, tmp_path, capsys):
    settings = ["--set", 'synthesis.distortions=["jpeg","contrast"]', "--set", "synthesis.levels=[1,5]"]
    assert call("synthesize", photographs, "--out", tmp_path / "by folder", "--workers", 1, *settings) == 0
    assert "15 pictures of 3 photographs" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "by folder" / "shards").glob("*.tar")}
    assert call("synthesize", photographs, "--out", tmp_path / "by folder", "--workers", 1, *settings) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}  # it went on, and there was nothing to do
    assert len(before) == 3

    write_manifest(import_folder(Source(photographs, "pristine")), photographs)
    config = SynthesisConfig(distortions=("jpeg", "contrast"), levels=(1, 5), workers=1)
    synthesize(photographs, tmp_path / "by set", seed=0, config=config)
    columns = ["reference", "distortion", "level", "sha256", "weak_label"]
    by_folder, by_set = (read_manifest(tmp_path / name)[columns] for name in ("by folder", "by set"))
    pd.testing.assert_frame_equal(by_folder, by_set)


def test_synthesize_refuses_a_folder_without_pictures(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert call("synthesize", tmp_path / "empty", "--out", tmp_path / "out") == 2
    assert "empty: no image files below it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_validate(photographs, tmp_path, capsys):
    folder = tmp_path / "judged"
    folder.mkdir()
    for i in range(10, 20):
        Image.fromarray(tiny_model.picture(i)).save(folder / f"{i}.png")
    (folder / "labels.csv").write_text("image,mos\n" + "".join(f"{i}.png,{i}\n" for i in range(10, 20)))
    arguments = ["validate", folder, "--pristine", photographs, "--report", tmp_path / "report.html"]
    assert call(*arguments) == 0
    assert "valid, 13 pictures" in capsys.readouterr().out
    assert "<html" in (tmp_path / "report.html").read_text().lower()
    assert json.loads((tmp_path / "report.json").read_text())["failures"] == []
    (folder / "13.png").write_bytes((folder / "13.png").read_bytes()[:200])
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    fault, report = error.splitlines()
    assert "13.png" in fault
    assert str(tmp_path / "report.html") in report


def test_validate_a_picture_set(photographs, tmp_path, capsys):
    write_manifest(import_folder(Source(photographs, "pristine")), photographs)
    assert call("validate", photographs, "--report", tmp_path / "report.html") == 0
    assert "valid, 3 pictures (3 pretrain/pristine)" in capsys.readouterr().out


def test_pretrain(tmp_path, capsys):
    for name, seeds in (("pristine", range(2)), ("authentic", range(10, 13))):
        (tmp_path / name).mkdir()
        for i in seeds:
            Image.fromarray(tiny_model.picture(i, 130, 140)).save(tmp_path / name / f"{i}.png")
    settings = ["synthesis.levels=[3,5]", 'synthesis.distortions=["jpeg","white_noise"]', "synthesis.workers=1"]
    settings += [
        "synthesis.weak_labels_per_photograph=0",
        "pretrain.steps=2",
        "pretrain.images=8",
        "pretrain.threads=1",
    ]
    settings += ["pretrain.workers=0", "pretrain.log_every=1", "pretrain.contents_per_class=1"]
    folders = ["--pristine", tmp_path / "pristine", "--authentic", tmp_path / "authentic", "--out", tmp_path / "run"]
    assert call("pretrain", *folders, *(word for setting in settings for word in ("--set", setting))) == 0
    assert "2 steps" in capsys.readouterr().out
    assert load_encoder(tmp_path / "run" / "encoder.safetensors").arch == "resnet18"
    sets = [word for name in ("dataset", "distorted") for word in (f"--{name}", tmp_path / "run" / name)]
    arguments = [*sets, "--out", tmp_path / "again"]
    assert call("pretrain", *arguments, *(word for setting in settings for word in ("--set", setting))) == 0
    encoders = [(tmp_path / run / "encoder.safetensors").read_bytes() for run in ("run", "again")]
    assert encoders[0] == encoders[1], "the same pictures, as a picture set"
    arguments = [*sets, "--out", tmp_path / "timed", "--minutes", "0.1"]
    assert call("pretrain", *arguments, *(word for setting in settings for word in ("--set", setting))) == 0
    assert read_metadata(tmp_path / "timed" / "encoder.safetensors")["steps"] > 2
