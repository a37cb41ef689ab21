"""What reads what strangers hand in: for each reader some small files, and what must be true of a result."""

import asyncio
import base64
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import bad_inputs
import dvc_projects
import numpy as np
import pandas as pd
import public_set_layouts
import sandbox
import tiny_model
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mutations import JSON, LEAF, alter, mend_png, mutate
from PIL import Image

from contrique import images
from contrique.artifacts import COEFFICIENTS, DESCRIPTION, DRIFT_REFERENCE, ENCODER, FULL_REFERENCE, LABELS, MANIFEST
from contrique.config import ServingLimits
from contrique.data.manifest import COLUMNS, read_manifest, read_picture_bytes
from contrique.regressor.diagnosis import ANY, Diagnosis
from contrique.regressor.head import Head, RegressorSummary
from contrique.regressor.reliability import Novelty
from contrique.regressor.ridge import Ridge

_MAX_PIXELS = 2**22
_LIMITS = ServingLimits(decoders=1, max_request_bytes=3_000_000, max_images=4, max_pixels=_MAX_PIXELS, seconds=60)


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: takes a folder of its own and the input; raises an AssertionError if the result makes no sense.
        inputs: makes the strategy of inputs.
        examples: in `make test`.
        is_covered: an input as it should be, which must be read without an error.
    """

    read: Callable[[Path, bytes], object]
    inputs: Callable[[], st.SearchStrategy[bytes]]
    valid: Callable[[], bytes]
    examples: int = 60
    tags: frozenset[str] = field(default_factory=frozenset)


def _encode(value: Any) -> bytes:
    """JSON with whatever Python can put into it: NaN, halves of surrogate pairs, integers of any length."""
    return json.dumps(value).encode()


# --- pictures -------------------------------------------------------------------------------------------------------


def _save(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@cache
def _pictures() -> dict[str, tuple[list[bytes], tuple[bytes, ...]]]:
    """Small files and pieces of every format that is read."""
    pixels = bad_inputs.photo()[:64, :64]
    picture = Image.fromarray(pixels)
    grey, clear = picture.convert("L"), picture.convert("RGBA")
    clear.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    real = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    exif = Image.Exif()
    exif[bad_inputs.ORIENTATION] = 6
    compressions = ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits", "zstd", "lzma")
    kinds: dict[str, tuple[list[bytes], tuple[bytes, ...]]] = {
        "bmp": (
            [_save(picture, "BMP"), _save(picture.quantize(16), "BMP"), _save(clear, "BMP")],
            (b"BM", b"\x28\0\0\0", b"\x01\0\x08\0"),
        ),
        "gif": (
            [_save(picture, "GIF"), _save(picture, "GIF", save_all=True, append_images=[grey.convert("RGB")])],
            (b"\x21\xf9\x04", b"\x2c", b"\x3b", b"\x21\xfe", b"GIF87a"),
        ),
        "jpeg": (
            [
                _save(picture, "JPEG"),
                _save(picture, "JPEG", progressive=True),
                _save(grey, "JPEG", exif=exif),
                _save(picture.convert("CMYK"), "JPEG"),
                _save(picture, "MPO", save_all=True, append_images=[picture]),
                _save(picture, "JPEG", restart_marker_rows=1),
            ],
            (b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc4", b"\xff\xc0", b"\xff\xc2", b"\xff\xd0", b"\xff\xe1"),
        ),
        "jpeg2000": (
            [
                _save(picture, "JPEG2000"),
                _save(clear, "JPEG2000", no_jp2=True),
                _save(grey, "JPEG2000", tile_size=(32, 32)),
            ],
            (b"\xff\x4f", b"\xff\x51", b"\xff\x90", b"\xff\x93", b"jp2c", b"ihdr", b"pclr", b"cdef"),
        ),
        "png": (
            [
                _save(picture, "PNG"),
                _save(clear, "PNG", exif=exif),
                _save(deep, "PNG"),
                _save(picture.quantize(16), "PNG", transparency=0),
                _save(picture, "PNG", save_all=True, append_images=[grey.convert("RGB")]),
            ],
            (b"IDAT", b"IEND", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iTXt", b"iCCP", b"eXIf"),
        ),
        "ppm": (
            [_save(picture, "PPM"), _save(grey, "PPM"), b"P2 64 64 9 " + b"5 " * 4096, b"P1 64 64 " + b"01" * 2048,
             b"Pf 64 64 -1.0\n" + bytes(4 * 64 * 64), b"P5 64 64 65535\n" + bytes(2 * 64 * 64)],
            (b"#", b"P3", b"P6", b"Py", b"P0CMYK", b" 0 ", b" 4294967296 ", b"\n# \n"),
        ),
        "qoi": (
            [images.encode_qoi(pixels), images.encode_qoi(np.zeros((64, 64, 3), np.uint8))],
            (b"qoif", b"\xfd", b"\xfe\0\0\0", b"\xff\0\0\0\0", bytes(7) + b"\1"),
        ),
        "tiff": (
            [_save(picture, "TIFF", compression=name) for name in compressions]
            + [_save(deep, "TIFF"), _save(real, "TIFF"), _save(picture.convert("1"), "TIFF", compression="group4")]
            + [_save(clear, "TIFF"), _save(picture.convert("YCbCr"), "TIFF"), _save(picture, "TIFF", big_tiff=True)],
            (b"II*\0", b"MM\0*", b"\x02\x01\x03\0", b"\x03\x01\x03\0", b"\x42\x01\x04\0", b"\x11\x01\x04\0"),
        ),
        "webp": (
            [
                _save(picture, "WEBP"),
                _save(picture, "WEBP", lossless=True),
                _save(clear, "WEBP"),
                _save(picture, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
            ],
            (b"RIFF", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF"),
        ),
    }  # fmt: skip
    return kinds


def _read_picture(_: Path, data: bytes) -> None:
    width, height = images.declared_size(data, "a.img")
    picture = images.decode(data, "a.img", _MAX_PIXELS)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.ndim == 3
    assert picture.pixels.shape[2] == 3
    assert sorted(picture.pixels.shape[:2]) == sorted((height, width))


def _picture_target(kind: str) -> Target:
    def inputs() -> st.SearchStrategy[bytes]:
        seeds, tokens = _pictures()[kind]
        whole = mutate(seeds, tokens)
        return whole | whole.map(mend_png) if kind == "png" else whole

    return Target(_read_picture, inputs, lambda: _pictures()[kind][0][0], examples=80)


# --- sets of pictures -----------------------------------------------------------------------------------------------


def _put_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        dvc_projects.picture(folder, name, number)


_TABLES = [
    b"image,mos\na.png,1\nb.png,2.5\nc.png,3\n",
    "\ufeffimage;dmos;reference;level\r\na.png;1,5;r;1\r\nb.png;2,5;r;2\r\n".encode(),
    "image\tmos\tdistortion\tsplit\nb.png\t3\tblur\ttrain\n".encode("utf-16"),
    b'sep=;\n"image";"mos"\n"a.png";"1"\n',
]
_CELLS = st.sampled_from(["a.png", "b.png", "../secret", "/etc/passwd", "1e400", "nan", "-inf", "=1+1", '"', "\0"])


def _read_labels(folder: Path, data: bytes) -> None:
    from contrique.sources.folders import Source, import_folder

    _put_pictures(folder / "set", "a", "b", "c")
    (folder / "set" / LABELS).write_bytes(data)
    rows = import_folder(Source(folder / "set", "labelled"))
    assert set(rows["image"]) <= {"a.png", "b.png", "c.png"}
    assert not np.isinf(rows["mos"]).any()


def _label_inputs() -> st.SearchStrategy[bytes]:
    cells = _CELLS | st.text(max_size=6)
    header = st.permutations(["image", "mos", "reference", "level", "split", "distortion"])
    tables = st.builds(lambda head, rows: [head, *rows], header, st.lists(st.lists(cells, max_size=6), max_size=5))
    text = tables.map(lambda rows: "\n".join(",".join(row) for row in rows))
    encoding = st.sampled_from(("utf-8", "utf-16", "cp1252", "utf-16-le"))
    files = st.builds(lambda text, form: text.encode(form, errors="replace"), text, encoding)
    return files | mutate(_TABLES, (b",", b";", b'"', b"\n", b"\r", b"\xff\xfe", b"\xef\xbb\xbf", b"../secret"))


def _to_parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    try:
        frame.to_parquet(buffer, index=False)
    except Exception:  # columns of several kinds cannot be written
        return frame.astype("str").to_parquet(index=False, engine="pyarrow") or b""
    return buffer.getvalue()


@cache
def _manifest() -> bytes:
    row = {"image": "a.png", "sha256": "ab" * 32, "reference": "r", "kind": "pristine", "split": "pretrain"}
    shard_row = {"image": "b.png", "shard": "s.tar", "offset": 3, "size": 5, "kind": "distorted", "split": "test"}
    return _to_parquet(pd.DataFrame([row, row | shard_row]))


def _read_manifest(folder: Path, data: bytes) -> None:
    place = folder / "set"
    _put_pictures(place, "a")
    (place / "s.tar").write_bytes(b"0123456789")
    (place / MANIFEST).write_bytes(data)
    for row in read_manifest(place).head(5).itertuples():
        try:
            content = read_picture_bytes(place, row)
        except images.BadImage as error:
            sandbox.check_message(str(error))
        else:
            assert sandbox.SECRET not in content


def _manifest_inputs() -> st.SearchStrategy[bytes]:
    names = st.sampled_from(["a.png", "../../outside/secret", "/etc/passwd", "", "s.tar", "\\..", "x" * 300, "C:"])
    column = st.sampled_from([*COLUMNS, "other"])
    cell = names | LEAF.filter(lambda value: not isinstance(value, str) or "\ud800" not in value)
    valid = {"image": "a.png", "sha256": "", "reference": "r", "kind": "pristine", "split": "pretrain", "shard": ""}
    row = st.builds(lambda more: valid | more, st.dictionaries(column, cell, max_size=4))
    frames = st.lists(row, min_size=1, max_size=3).map(lambda rows: _to_parquet(_cast(rows)))
    return frames | mutate([_manifest()], (b"PAR1", b"image", b"../../outside/secret"))


def _cast(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Columns of one kind each, as Parquet has them."""
    frame = pd.DataFrame(rows)
    for name in frame:
        kinds = {type(value) for value in frame[name]}
        if len(kinds) > 1 or any(abs(value) > 2**63 - 1 for value in frame[name] if type(value) is int):
            frame[name] = frame[name].astype("str")
    return frame


@cache
def _project() -> Path:
    """A DVC project outside git, with its objects."""
    folder = Path(tempfile.mkdtemp(prefix="contrique-fuzz-project-")) / "project"
    dvc_projects.dvc_project(folder, "../store")
    shutil.rmtree(folder / ".git")
    return folder


def _read_project(part: str) -> Callable[[Path, bytes], None]:
    """Fetch a project of which one file is the input."""

    def read(folder: Path, data: bytes) -> None:
        from contrique.sources.fetch import fetch

        project = folder / "project"
        shutil.copytree(_project(), project)
        if part == "list":
            md5 = hashlib.md5(data).hexdigest()
            place = project / "store" / "files" / "md5" / md5[:2] / f"{md5[2:]}.dir"
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.write_bytes(data)
            (project / "data.dvc").write_text(f"outs:\n- md5: {md5}.dir\n  hash: md5\n  path: data\n")
        else:
            (project / part).write_bytes(data)
        before = dvc_projects.files(project)
        try:
            fetch(folder / "out", data=str(project))
        finally:
            assert dvc_projects.files(project) == before
            assert {path.name for path in folder.iterdir()} <= {"project", "out", "tmp"}
        assert (folder / "out" / MANIFEST).is_file()

    return read


def _read_project_file(part: str) -> bytes:
    return (_project() / part).read_bytes()


def _list_of_files() -> bytes:
    (path,) = (_project() / "store").rglob("*.dir")
    return path.read_bytes()


_TREE_OF_PIN = {"md5": "0" * 32 + ".dir", "hash": "md5", "path": "data", "size": 1, "nfiles": 1, "remote": "team"}


def _pin_inputs() -> st.SearchStrategy[bytes]:
    out = alter(_TREE_OF_PIN).map(lambda out: _encode({"outs": [out]}))
    tokens = (b"outs:", b"- ", b"&a [*a]", b"!!python/object/apply:os.system ['true']", b"path: ../x\n", b"remote: x\n")
    return out | JSON.map(_encode) | mutate([_read_project_file("data.dvc")], tokens)


def _list_inputs() -> st.SearchStrategy[bytes]:
    names = st.sampled_from(["../../outside/x", "/x", "a/b", "a", "C:x", "a\\b", "", ".", "x" * 300]) | st.text(
        max_size=9
    )
    entry = alter({"md5": "0" * 32, "relpath": "a"}, names | LEAF)
    lists = st.lists(entry, max_size=4).map(_encode)
    tokens = (b"../../outside/x", b"\\u0000", b"[", b"{", b'"relpath": ', b"1e400")
    return lists | JSON.map(_encode) | mutate([_list_of_files()], tokens)


def _config_inputs() -> st.SearchStrategy[bytes]:
    tokens = (
        *(
            b"    url = s3://b/p\n",
            b"    endpointurl = http://127.0.0.1:9\n",
            b"    url = remote://team/x\n",
            b"[core]\n",
        ),
        *(b"    profile = x\n", b"    configpath = ../aws\n", b"[cache]\n    dir = /tmp/x\n", b"['remote \"team\"']\n"),
        *(b"%(url)s", b"'''", b"    url = ../../..\n", b"    version_aware = true\n", b"[[[", b"    url = ssh://h/x\n"),
    )
    return mutate([_read_project_file(".dvc/config")], tokens)


@cache
def _public_files(name: str) -> tuple[str, bytes]:
    """The first score file of a public set, by its relative path."""
    from contrique.sources.public_sets import SETS

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        public_set_layouts.FIXTURES[name][0](folder)
        score = next(path for path in SETS[name].scores[0].split("|") if (folder / path).is_file())
        return score, (folder / score).read_bytes()


def _read_public(name: str) -> Callable[[Path, bytes], None]:
    """The layouts are small copies, so that no input is a whole set: each must end in one clear line."""

    def read(folder: Path, data: bytes) -> None:
        from contrique.sources import public_sets

        score, _ = _public_files(name)
        path = folder / "set" / score
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        for other in public_sets.SETS[name].scores[1:]:
            (folder / "set" / other.split("|")[0]).write_bytes(data)
        public_sets.read(name, folder / "set")

    return read


def _public_target(name: str) -> Target:
    tokens = (b",", b"\n", b"..", b"nan", b"1e400", b'"', b"PK\3\4", b"\0" * 8)
    return Target(
        _read_public(name),
        lambda: mutate([_public_files(name)[1]], tokens),
        lambda: _public_files(name)[1],
        examples=6 if name in ("live", "clive") else 25,  # a process for each
        tags=frozenset({"never valid"}),
    )


# --- models ---------------------------------------------------------------------------------------------------------

_WIDTH = 1024
_SUMMARY: dict[str, Any] = asdict(
    RegressorSummary("human", 1.0, 5.0, 1.0, 10, 4, 5, 0.5, _WIDTH, interval=0.5, interval_n=9, diagnosis_accuracy=0.5)
)


@cache
def _regressor() -> dict[str, bytes]:
    """Files of a small regressor with everything in it, by name."""
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(6, _WIDTH)).astype(np.float32)
    diagnosis = Diagnosis(bank[:4], np.zeros(4, np.float32), ("jpeg", "pristine") * 2, (ANY, ANY, 3, 0))
    head = Head(Ridge(rng.normal(size=_WIDTH), 0.5, 1.0), RegressorSummary(**_SUMMARY), Novelty(bank, 0.05), diagnosis)
    with tempfile.TemporaryDirectory() as place:
        head.save(Path(place) / "regressor")
        return {name: (Path(place) / "regressor" / name).read_bytes() for name in (DESCRIPTION, COEFFICIENTS)}


def _read_regressor(part: str) -> Callable[[Path, bytes], None]:
    def read(folder: Path, data: bytes) -> None:
        place = folder / "regressor"
        place.mkdir()
        for name, content in _regressor().items():
            (place / name).write_bytes(data if name == part else content)
        head = Head.load(place)
        features = np.random.default_rng(1).normal(size=(2, head.summary.features_dim)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        raw = head.predict(features)
        points = head.to_points(raw)
        assert ((points >= 0) & (points <= 100)).all()
        low, high = head.interval(float(raw[0])) or (0, 100)
        assert 0 <= low <= high <= 100
        if head.novelty:
            assert np.isfinite(head.novelty.distance(features)).all()
        if head.diagnosis:
            suspects = head.diagnosis.suspects(features[0])
            assert all(0 <= suspect.probability <= 1 for suspect in suspects)

    return read


_DTYPES = st.sampled_from(["<f8", ">f8", "<f4", "<c16", "<i8", "|b1", "<U5", "<M8[s]", "|S3", "<f2", "<f16"])
_SHAPES = st.lists(st.sampled_from((0, 1, 2, 3, 5, 6, _WIDTH)), max_size=3).filter(lambda shape: np.prod(shape) < 2**16)


@cache
def _regressor_arrays() -> dict[str, Any]:
    with np.load(io.BytesIO(_regressor()[COEFFICIENTS])) as file:
        return {name: file[name] for name in file.files}


def _pack(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name or "_": value for name, value in values.items() if "/" not in name and "\0" not in name})
    return buffer.getvalue()


def _arrays(valid: Callable[[], dict[str, Any]]) -> st.SearchStrategy[bytes]:
    value = st.builds(lambda kind, shape: np.zeros(shape, kind), _DTYPES, _SHAPES)
    odd = st.sampled_from((np.nan, np.inf, -np.inf, 1e308, -1e308, 0.0)).flatmap(
        lambda number: st.sampled_from(sorted(valid())).map(lambda name: np.full_like(valid()[name], 0) + number
        if valid()[name].dtype.kind == "f" else valid()[name])
    )  # fmt: skip
    names = st.sampled_from(sorted(valid()))
    values = st.dictionaries(names, value | odd | arrays.arrays(np.float64, _SHAPES), max_size=2)
    tokens = (
        b"PK\1\2",
        b"PK\3\4",
        b"\x93NUMPY",
        b"'shape': (99999999999,)",
        b"'descr': '|O'",
        b"'fortran_order': True",
    )
    return values.map(lambda new: _pack(valid() | new)) | mutate([_pack(valid())], tokens)


def _summary_inputs() -> st.SearchStrategy[bytes]:
    return alter(_SUMMARY).map(_encode) | JSON.map(_encode) | mutate([_encode(_SUMMARY)], (b"1e400", b"NaN", b"[" * 9))


@cache
def _encoder() -> bytes:
    """An encoder's header, and two small tensors."""
    import torch
    from safetensors.torch import save

    tensors = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.running_var": torch.ones(64)}
    return save(tensors, metadata={"contrique-encoder-1": json.dumps({"arch": "resnet18", "seed": 0})})


def _read_encoder(folder: Path, data: bytes) -> None:
    from contrique.encoder.weights import EncoderFile

    (folder / ENCODER).write_bytes(data)
    EncoderFile(folder / ENCODER).load()


def _encoder_inputs() -> st.SearchStrategy[bytes]:
    def pack(header: Any, rest: int) -> bytes:
        text = _encode(header)
        return len(text).to_bytes(8, "little") + text + bytes(rest)

    tensor = alter({"dtype": "F32", "shape": [64], "data_offsets": [0, 256]})
    metadata = alter({"contrique-encoder-1": json.dumps({"arch": "resnet18"})}) | JSON
    header = st.builds(lambda a, b: {"__metadata__": a, "bn1.running_var": b}, metadata, tensor)
    tokens = (b'"arch": "resnet50"', b'"__metadata__"', b'"F64"', b'"BOOL"', b"[0,", b"{" * 20, b"\\u0000")
    return st.builds(pack, header, st.sampled_from((0, 256, 300))) | mutate([_encoder()], tokens)


@cache
def _drift() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "scores": rng.normal(size=9),
        "distances": rng.uniform(size=9),
        "types": np.array(["a"] * 9),
        "mean": rng.normal(size=8),
    }


def _read_drift(folder: Path, data: bytes) -> None:
    from contrique.monitoring import read_reference

    (folder / DRIFT_REFERENCE).write_bytes(data)
    reference = read_reference(folder)
    assert np.isfinite(reference.scores).all()
    assert np.isfinite(reference.distances).all()
    assert len(reference.scores) == len(reference.distances)


@cache
def _full_reference() -> dict[str, Any]:
    return {"coef": np.ones(8, np.float32), "perfect": np.float64(5), "alpha": np.float64(1), "worst": np.float64(1)}


def _read_full_reference(folder: Path, data: bytes) -> None:
    from contrique.regressor.full_reference import FullReference

    (folder / FULL_REFERENCE).write_bytes(data)
    head = FullReference.load(folder / FULL_REFERENCE)
    width = len(head.coef)
    points = head.to_points(head.predict(np.zeros((1, width)), np.full((1, width), 0.5)))
    assert ((points >= 0) & (points <= 100)).all()


@cache
def _checkpoint(old: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    state = {"state_dict": {"encoder.0.weight": torch.zeros(4, 3, 3, 3), "projector.0.weight": torch.ones(3)}}
    torch.save(state, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def _read_checkpoint(folder: Path, data: bytes) -> None:
    from contrique.encoder.original import import_checkpoint

    (folder / "a.tar").write_bytes(data)
    import_checkpoint(folder / "a.tar", folder / "out.safetensors")


def _checkpoint_inputs() -> st.SearchStrategy[bytes]:
    tokens = (
        b"PK\1\2",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"q\0",
        b".",
    )
    return mutate([_checkpoint(False), _checkpoint(True)], tokens)


# --- requests -------------------------------------------------------------------------------------------------------


class _Service:
    """The service, asked in this process; its decoders are the real ones."""

    def __init__(self) -> None:
        from contrique.scoring.scorer import Scorer
        from contrique.serving.app import application

        with tempfile.TemporaryDirectory() as place:
            parts = tiny_model.build(Path(place) / "model")
            scorer = Scorer(parts.encoder, parts.regressor)
            scorer.judge(images.encode_png(tiny_model.picture(0)), "first")
        self._loop = asyncio.new_event_loop()
        self._app = application(scorer, _LIMITS)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())
        self.ask("/score", _REQUESTS[0])  # what is imported late is imported now

    def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        messages = [
            {"type": "http.request", "body": body[at : at + 2**16], "more_body": at + 2**16 < len(body)}
            for at in range(0, max(1, len(body)), 2**16)
        ]
        answer: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answer.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
            **{"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers},
            **{"client": ("127.0.0.1", 9), "server": ("127.0.0.1", 80)},
        }
        self._loop.run_until_complete(self._app(scope, receive, send))
        return answer[0]["status"], b"".join(part.get("body", b"") for part in answer[1:])

    def close(self) -> None:
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))


@cache
def service() -> _Service:
    """One for all inputs."""
    return _Service()


def _read_request(_: Path, data: bytes) -> None:
    for path in ("/score", "/explain"):
        status, content = service().ask(path, data)
        assert status in (200, 400, 413, 422), f"status {status}: {content[:300]!r}"
        answer = json.loads(content)
        assert b"Traceback" not in content
        if status != 200:
            assert list(answer) == ["error"]
            assert "\n" not in answer["error"]
            continue
        for row in answer.get("predictions", [answer]):
            assert (row["score"] is None) == (row["error"] is not None)
            assert "\n" not in (row["error"] or "")
            assert row["score"] is None or 0 <= row["score"] <= 100


_PNG = base64.b64encode(images.encode_png(tiny_model.picture(0, 64, 64))).decode()
_REQUESTS = [
    _encode({"images": [{"image": _PNG, "name": "a"}, {"image": "data:image/png;base64," + _PNG}]}),
    _encode({"image": _PNG}),
    _encode({"images": [{"image": ""}, {"image": "!"}]}),
]


def _request_inputs() -> st.SearchStrategy[bytes]:
    service()  # it starts processes and writes files of its own
    picture = alter({"image": _PNG, "name": "a"}, JSON | st.just("data:text/plain;base64,AAAA"))
    pictures = st.lists(picture, max_size=6).map(lambda items: _encode({"images": items}))
    tokens = (b"[", b"{", b'{"image":', b"\\ud800", b"1e999", b"null", b"data:,", b"\xff", b"\0", b"=", b"[" * 3000)
    return pictures | picture.map(_encode) | JSON.map(_encode) | mutate(_REQUESTS, tokens)


PICTURES = ("bmp", "gif", "jpeg", "jpeg2000", "png", "ppm", "qoi", "tiff", "webp")
PUBLIC = ("live", "csiq", "tid2013", "kadid10k", "koniq10k", "clive", "flive", "spaq")
TARGETS: dict[str, Target] = (
    {
        "labels.csv": Target(_read_labels, _label_inputs, lambda: _TABLES[0]),
        "manifest.parquet": Target(_read_manifest, _manifest_inputs, _manifest, examples=80),
        "data.dvc": Target(_read_project("data.dvc"), _pin_inputs, lambda: _read_project_file("data.dvc"), examples=40),
        "list of files": Target(_read_project("list"), _list_inputs, _list_of_files, examples=40),
        ".dvc/config": Target(
            _read_project(".dvc/config"), _config_inputs, lambda: _read_project_file(".dvc/config"), examples=30
        ),
        "regressor.json": Target(_read_regressor(DESCRIPTION), _summary_inputs, lambda: _regressor()[DESCRIPTION]),
        "ridge.npz": Target(
            _read_regressor(COEFFICIENTS), lambda: _arrays(_regressor_arrays), lambda: _regressor()[COEFFICIENTS]
        ),
        "drift.npz": Target(_read_drift, lambda: _arrays(_drift), lambda: _pack(_drift())),
        "full_reference.npz": Target(
            _read_full_reference, lambda: _arrays(_full_reference), lambda: _pack(_full_reference())
        ),
        "encoder.safetensors": Target(
            _read_encoder, _encoder_inputs, _encoder, examples=40, tags=frozenset({"never valid"})
        ),
        "checkpoint": Target(
            _read_checkpoint,
            _checkpoint_inputs,
            lambda: _checkpoint(False),
            examples=30,
            tags=frozenset({"never valid"}),
        ),
        "request": Target(_read_request, _request_inputs, lambda: _REQUESTS[0]),
    }
    | {f"picture {kind}": _picture_target(kind) for kind in PICTURES}
    | {name: _public_target(name) for name in PUBLIC}
)
