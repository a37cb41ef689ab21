"""ONNX Runtime and OpenVINO against PyTorch, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_model
import torch

from contrique.cli.main import main
from contrique.encoder import parity
from contrique.encoder.backends import PACKAGES, BackendError, Torch, create_backend, export, graph_path, list_installed
from contrique.encoder.features import extract_batch
from contrique.encoder.network import Encoder
from contrique.encoder.parity import (
    FEATURE_BOUND,
    SCORE_BOUND,
    check_features,
    compute_probes,
    load_backend,
    measure_parity,
    measure_speed,
)
from contrique.encoder.weights import EncoderFile, load_encoder, save_encoder
from contrique.files import sha256
from contrique.images import encode_png
from contrique.scoring.scorer import TOLERANCE, Scorer

OTHERS = [name for name in list_installed() if name != "torch"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_model.build(tmp_path_factory.mktemp("model") / "parts")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of this module's own, so that graphs are exported once for all tests and none is left."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CONTRIQUE_CACHE", str(folder))
        yield folder


def test_the_project_installs_every_backend():
    """Or the tests below would pass by testing nothing."""
    assert OTHERS == ["onnx", "openvino"]


@pytest.mark.parametrize("name", OTHERS)
def test_features_agree_with_pytorch_at_any_size_and_in_any_batch(parts, name):
    file = EncoderFile(parts.encoder)
    encoder = file.encoder
    backend = create_backend(name, file, "float32")
    for shape in ((64, 64), (97, 131), (64, 64), (150, 70)):
        pictures = np.stack([tiny_model.picture(i, *shape) for i in range(3)])
        ours, theirs = extract_batch(pictures, backend), extract_batch(pictures, Torch(encoder))
        assert np.abs(ours - theirs).max() <= FEATURE_BOUND
        np.testing.assert_allclose(extract_batch(pictures[1:2], backend)[0], ours[1], atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_answers_are_not_overwritten_by_the_next_picture(parts, name):
    backend = create_backend(name, EncoderFile(parts.encoder), "float32")
    first = backend(tiny_model.picture(0)[None])
    copy = first.copy()
    backend(tiny_model.picture(1)[None])
    np.testing.assert_array_equal(first, copy)


@pytest.mark.parametrize("name", OTHERS)
def test_scores_agree_with_pytorch(parts, name, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode_png(tiny_model.picture(i, 80, 96 + 8 * i)))
    reference, scorer = Scorer(parts.encoder, parts.regressor), Scorer(parts.encoder, parts.regressor)
    assert scorer.use(name) == name
    for a, b in zip(reference.score_paths([tmp_path]), scorer.score_paths([tmp_path]), strict=True):
        assert a.path == b.path
        assert abs(a.score - b.score) <= TOLERANCE


def test_the_graph_is_exported_once_for_an_encoder(parts, cache, monkeypatch, tmp_path):
    first = export(EncoderFile(parts.encoder))
    monkeypatch.setattr(torch.onnx, "export", None)
    assert export(EncoderFile(parts.encoder)) == first
    assert first.parent == cache
    save_encoder(Encoder("resnet18", seed=3), tmp_path / "other.safetensors")
    with pytest.raises(TypeError):  # another encoder is exported anew
        export(EncoderFile(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("is_compared", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_a_graph_of_another_encoder_is_refused(parts, name, is_compared, tmp_path, monkeypatch):
    """As a damaged or exchanged file in the cache would be, before and after the right one was compared."""
    monkeypatch.setenv("CONTRIQUE_CACHE", str(tmp_path / "cache"))
    save_encoder(Encoder("resnet18", seed=5), tmp_path / "stranger.safetensors")
    stranger = export(EncoderFile(tmp_path / "stranger.safetensors"))
    scorer = Scorer(parts.encoder, parts.regressor)
    if is_compared:
        scorer.use(name)
    stranger.rename(graph_path(sha256(parts.encoder)))
    with pytest.raises(BackendError, match=rf"backend {name} in float32 differs from PyTorch .* use --backend torch"):
        scorer.use(name)


def test_a_damaged_record_is_computed_anew(parts, cache):
    scorer = Scorer(parts.encoder, parts.regressor)
    scorer.use("onnx")
    graph = graph_path(sha256(parts.encoder))
    for path in (graph.with_name(f"{graph.stem}-torch-float32.npz"), graph.with_name(f"{graph.stem}-onnx-float32.npz")):
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        assert scorer.use("onnx") == "onnx"
        assert path.read_bytes() == whole


def test_a_backend_just_inside_its_bound_passes_and_just_outside_is_refused(parts):
    encoder = load_encoder(parts.encoder)
    reference = Torch(encoder)

    def off_by(part):
        def backend(pictures):
            maps = reference(pictures)
            maps[:, 0] += part * np.abs(maps).mean()
            return maps

        return backend

    def check(part):
        features = compute_probes(off_by(part))
        return check_features(features, compute_probes(reference), lambda f: 1e3 * f[:, 0], "this one", exact=True)

    assert check(0) == 0
    assert 0 < check(1e-5) <= SCORE_BOUND
    with pytest.raises(BackendError, match="this one differs"):
        check(1e-2)


def test_bfloat16_is_bounded_by_scores(parts):
    """A ridge that lives on the features' last digits cannot be served in bfloat16; a flat one can."""
    file = EncoderFile(parts.encoder)
    encoder = file.encoder
    low = Torch(encoder, "bfloat16")
    picture = tiny_model.picture(0)[None]
    assert np.abs(extract_batch(picture, low) - extract_batch(picture, Torch(encoder))).max() > FEATURE_BOUND
    weights = np.random.default_rng(0).normal(size=1024)
    assert load_backend("torch", file, "bfloat16", lambda f: 1e-3 * f @ weights)[0] == "torch"
    with pytest.raises(BackendError, match=r"torch in bfloat16 differs .* more than 2"):
        load_backend("torch", file, "bfloat16", lambda f: 1e5 * f @ weights)


def test_parity_says_of_each_backend_how_near_it_comes_or_why_it_is_refused(parts, cache):
    file = EncoderFile(parts.encoder)
    files = set(cache.iterdir())
    weights = np.random.default_rng(0).normal(size=1024)
    gentle = measure_parity(file, lambda f: 1e-3 * f @ weights)
    assert set(gentle) == {"torch.bfloat16", "onnx.float32", "openvino.float32", "openvino.bfloat16"}
    assert all(text.startswith("within ") for text in gentle.values())
    steep = measure_parity(file, lambda f: 1e8 * f @ weights)
    assert all(text.startswith("refused: backend ") for text in steep.values())
    assert set(cache.iterdir()) == files


def test_signals_are_survived_after_backends_have_gone(parts, tmp_path):
    """In a process of its own: it would end in a segmentation fault."""
    program = """
import signal, sys
from pathlib import Path
from contrique.encoder.backends import create_backend
from contrique.encoder.weights import EncoderFile
file = EncoderFile(Path(sys.argv[1]))
for precision in ("float32", "bfloat16"):  # the second is there before the first goes
    backend = create_backend("openvino", file, precision)
del backend
signal.signal(signal.SIGCHLD, lambda *_: print("survived"))
signal.raise_signal(signal.SIGCHLD)
"""
    process = subprocess.run([sys.executable, "-c", program, parts.encoder], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "survived\n"), process.stderr


def test_a_backend_that_cannot_be_made_is_refused_and_stops_nothing(parts, monkeypatch):
    file, make = EncoderFile(parts.encoder), create_backend

    def fail(name, *rest):
        if name == "openvino":
            raise ImportError("libtbb.so.12: cannot open shared object file\nand more")
        return make(name, *rest)

    monkeypatch.setattr(parity, "create_backend", fail)
    report = measure_parity(file, lambda f: f[:, 0])
    why = "cannot be made: ImportError: libtbb.so.12: cannot open shared object file"
    assert report["openvino.float32"] == f"refused: backend openvino in float32 {why}"
    assert report["onnx.float32"].startswith("within ")


def test_features_are_not_rounded_to_tf32_and_the_switch_is_put_back(parts):
    encoder, flags = load_encoder(parts.encoder), []
    maps = encoder.maps

    def record(pictures):
        flags.append(torch.backends.cudnn.allow_tf32)
        if len(flags) == 2:
            raise RuntimeError("out of memory")
        return maps(pictures)

    encoder.maps = record
    backend, picture = Torch(encoder), tiny_model.picture(0)[None]
    assert torch.backends.cudnn.allow_tf32
    backend(picture)
    with pytest.raises(RuntimeError, match="out of memory"):
        backend(picture)
    assert flags == [False, False]
    assert torch.backends.cudnn.allow_tf32


def test_auto_takes_the_fastest_that_agrees_and_remembers(parts, cache, monkeypatch):
    scorer = Scorer(parts.encoder, parts.regressor)
    times = {"torch": 2.0, "onnx": 3.0, "openvino": 1.0}
    calls = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def measure(backends, *_):
        calls.append(sorted(backends))
        return {name: times[name] for name in backends}

    monkeypatch.setattr(parity, "measure_speed", measure)
    assert scorer.use("auto") == "openvino"
    assert scorer.use("auto") == "openvino"
    assert calls == [["onnx", "openvino", "torch"]]
    (file,) = cache.glob(f"{sha256(parts.encoder)[:32]}*-choice.json")
    choice = json.loads(file.read_text())
    assert (choice["backend"], choice["seconds"]) == ("openvino", times)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # another machine, so to speak
    times["onnx"] = 0.5
    assert scorer.use("auto") == "onnx"
    assert len(calls) == 2


def test_measuring_asks_each_backend_alike():
    calls = []
    backends = {name: lambda pictures, name=name: calls.append((name, pictures.shape)) for name in ("a", "b")}
    seconds = measure_speed(backends, (64, 96), repeats=2)
    assert calls == [("a", (1, 64, 96, 3)), ("b", (1, 64, 96, 3))] * 3
    assert all(0 <= value < 1 for value in seconds.values())


def test_what_cannot_be_had_is_told(parts, monkeypatch):
    scorer = Scorer(parts.encoder, parts.regressor)
    with pytest.raises(BackendError, match="onnx has no bfloat16; it has float32"):
        scorer.use("onnx", "bfloat16")
    with pytest.raises(BackendError, match="unknown backend 'tpu'"):
        scorer.use("tpu")
    monkeypatch.setitem(PACKAGES, "openvino", ("onnx", "no_such_package"))
    with pytest.raises(BackendError, match=r"openvino needs no_such_package; run: pip install -e '\.\[openvino\]'"):
        scorer.use("openvino")


def test_the_command_takes_a_backend(parts, tmp_path, capsys):
    model = tmp_path / "model"
    (model / "regressor").mkdir(parents=True)
    (model / "encoder.safetensors").write_bytes(parts.encoder.read_bytes())
    for path in parts.regressor.iterdir():
        (model / "regressor" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "a.png").write_bytes(encode_png(tiny_model.picture(0)))
    arguments = ["score", str(tmp_path / "a.png"), "--model", str(model), "--format", "json"]
    scores = []
    for backend in ("torch", "onnx", "openvino"):
        assert main([*arguments, "--backend", backend]) == 0
        scores.append(json.loads(capsys.readouterr().out)[0]["score"])
    assert np.ptp(scores) <= TOLERANCE
    assert main([*arguments, "--backend", "onnx", "--precision", "bfloat16"]) == 2
    assert "onnx has no bfloat16" in capsys.readouterr().err
