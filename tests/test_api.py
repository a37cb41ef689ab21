"""The front door: what `import contrique` offers, against the command line and without what it must not need."""

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from PIL import Image

import contrique
from contrique import images
from contrique.cli.main import main
from contrique.encoder.features import ImageTooSmall

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTRIQUE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder."""
    parts = tiny_model.build(tmp_path_factory.mktemp("model") / "parts")
    return parts.encoder.parent


@pytest.fixture(scope="module")
def model(folder):
    return contrique.load(folder)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(tiny_model.picture(3, 96, 130)).save(path)
    return path


def test_the_same_answers_as_the_command_to_the_last_digit(model, folder, photo, tmp_path, capsys):
    other = tmp_path / "other.jpg"
    Image.fromarray(tiny_model.picture(4)).save(other)
    assert main(["score", str(photo), str(other), "--model", str(folder), "--format", "json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    for answer, score in zip(answers, [model.score(photo), model.score(other)], strict=True):
        assert (score.path, score.value, score.raw) == (answer["path"], answer["score"], answer["raw"])
        assert (score.interval, score.model, score.labels) == (answer["interval"], str(folder), "human")
    assert main(["explain", str(photo), "--model", str(folder), "--out", str(tmp_path / "a.png")]) == 0
    explanation = model.explain(photo)
    explanation.save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert explanation.score == model.score(photo)
    assert explanation.heat.shape == (3, 5)


def test_every_form_of_a_picture_has_one_score(model, photo):
    pixels = images.read(photo)
    unwritable = np.asarray(Image.open(photo))
    assert not unwritable.flags.writeable
    expected = model.score(str(photo)).value
    forms = (photo, photo.read_bytes(), Image.open(photo), pixels, unwritable, pixels[::-1][::-1])
    assert [model.score(form).value for form in forms] == [expected] * len(forms)
    assert [item.value for item in model.score(list(forms))] == [expected] * len(forms)


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "TIFF"), ("1", "PNG")]
)
def test_a_pillow_image_of_any_mode_scores_as_its_file(model, photo, mode, kind):
    picture = Image.open(photo).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert model.score(picture).value == model.score(buffer.getvalue()).value


def test_a_turned_image_is_scored_upright(model, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(photo).save(buffer, "PNG", exif=exif)
    assert model.score(Image.open(buffer)).value == model.score(buffer.getvalue()).value != model.score(photo).value


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_raise_no_warning(folder, photo):
    pixels = np.asarray(Image.open(photo))
    by_torch = contrique.load(folder, backend="torch")
    assert by_torch.score(pixels).value == by_torch.score(photo).value
    assert by_torch.explain(pixels).heat.shape == (3, 5)
    np.testing.assert_array_equal(contrique.distort(pixels, "lens_blur", 2), contrique.distort(pixels, "lens_blur", 2))
    images.half_scale(pixels)


def test_many_pictures_come_one_by_one_and_failures_keep_their_place(model, photo, tmp_path):
    small = np.zeros((63, 99, 3), np.uint8)
    pixels = images.read(photo)
    items = [photo, tmp_path / "absent.png", b"no picture", pixels, small, pixels[..., 0], pixels.astype(float)]
    results = list(model.score(items))
    assert [isinstance(item, contrique.Score) for item in results] == [True, False, False, True, False, False, False]
    assert "absent.png: cannot be read" in results[1].error
    assert results[2].error.startswith("image 2: not an image")
    assert results[4].error.startswith("image 4: 99x63 is under 64 pixels a side")
    assert "image 5: an array of shape (96, 130) and type uint8; give RGB" in results[5].error
    assert list(model.score([])) == []


def test_an_endless_generator_is_read_as_results_are_taken(model):
    numbers = []

    def endless():
        for number in itertools.count():
            numbers.append(number)
            yield tiny_model.picture(number % 3, 64, 64)

    first = list(itertools.islice(model.score(endless()), 3))
    assert len({item.value for item in first}) == 3
    assert len(numbers) < 200


def test_one_bad_picture_is_one_clear_error(model, photo, tmp_path):
    with pytest.raises(images.BadImage, match=r"absent.png: cannot be read .*; check the path"):
        model.score(tmp_path / "absent.png")
    with pytest.raises(images.BadImage, match="cannot be read"):
        model.score(tmp_path)
    with pytest.raises(images.BadImage, match="image: the file is empty"):
        model.score(b"")
    for ask in (model.score, model.explain):
        with pytest.raises(ImageTooSmall, match="image: 99x63 is under 64 pixels a side"):
            ask(np.zeros((63, 99, 3), np.uint8))
    with pytest.raises(TypeError, match="a int is no picture; give a path"):
        model.score(3)
    with pytest.raises(TypeError, match="image 1: a NoneType is no picture"):
        list(model.score([photo, None]))


def test_distort_is_the_command(photo, tmp_path):
    for name in ("white_noise", "jpeg"):  # with and without random numbers
        out = tmp_path / f"{name}.png"
        options = ["distort", str(photo), "--name", name, "--level", "3", "--seed", "7", "--out", str(out)]
        assert main(options) == 0
        for form in (photo, photo.read_bytes()):
            np.testing.assert_array_equal(contrique.distort(form, name, level=3, seed=7), images.read(out))
    pixels = images.read(photo)
    before = pixels.copy()
    first, second = (contrique.distort(pixels, "white_noise", 3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(pixels, before)
    assert (first != contrique.distort(pixels, "white_noise", 3, seed=1)).any()
    assert (first.dtype, first.shape) == (np.uint8, pixels.shape)


def test_a_notebook_shows_score_and_heat_map_without_trusting_names(model, photo):
    hostile = photo.with_name("<script>alert(1)<br>.png")
    hostile.write_bytes(photo.read_bytes())
    score = model.score(hostile)
    for html in (score._repr_html_(), model.explain(hostile)._repr_html_()):
        assert "<script>" not in html
        assert "&lt;script&gt;" in html
        assert f"{score.value:.1f}" in html


def run(program: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, env=variables, capture_output=True, text=True, check=False)


def test_the_import_is_light():
    program = (
        "import sys, contrique\nassert {'load', 'score', 'Score'} <= set(dir(contrique))\n"
        "heavy = {'numpy', 'torch', 'cv2', 'PIL', 'scipy', 'pandas', 'sklearn', 'mlflow', 'contrique.images'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "try:\n    contrique.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    result = run(program)
    assert (result.returncode, result.stdout) == (0, "module 'contrique' has no attribute 'nothing'\n"), result.stderr


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_folder_is_scored_without_mlflow_and_once_compared_without_pytorch(folder, photo, backend):
    expected = contrique.load(folder, backend=backend).score(photo).value  # exports and compares
    program = """
import sys

for name in ("mlflow", "torch", "torchvision", "scipy", "pandas", "sklearn", "matplotlib"):
    sys.modules[name] = None  # an import of it fails
import contrique

model = contrique.load(sys.argv[1], backend=sys.argv[3])
print(repr(model.score(sys.argv[2]).value), model.explain(sys.argv[2]).heat.shape)
"""
    result = run(program, folder, photo, backend)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{expected!r} (3, 5)\n"


def test_no_model_is_one_clear_error(tmp_path, monkeypatch):
    from contrique.tracking.store import RegistryError

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match="run the pipeline first"):
        contrique.load("champion")
    with pytest.raises(RegistryError, match=r"nowhere/: no model there; give a folder with encoder\.safetensors"):
        contrique.load("nowhere/")
