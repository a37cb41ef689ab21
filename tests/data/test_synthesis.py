import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import VARIABLE, find_processes, survivors
from skimage import data

from contrique import distortions, images
from contrique.artifacts import MANIFEST
from contrique.config import SynthesisConfig
from contrique.data import synthesis
from contrique.data.manifest import read_manifest, read_picture, read_picture_bytes, write_manifest
from contrique.data.synthesis import SynthesisError, SynthesisSummary, Version, draw_weakly_labelled, join_parts
from contrique.files import DiskFull
from contrique.sources.folders import Source, import_folder

SMALL = SynthesisConfig(
    distortions=("jpeg", "white_noise", "motion_blur"),
    levels=(2, 5),
    max_side=64,
    weak_labels_per_photograph=0,  # their import of torch takes each worker seconds
    workers=1,
)


def write_photographs(folder: Path, count: int, side: int = 80) -> Path:
    """A picture set of `count` different pristine photographs."""
    folder.mkdir(parents=True)
    scene = data.astronaut()
    for k in range(count):
        crop = scene[7 * k % 300 :, 11 * k % 300 :][:160, :200]
        pixels = cv2.resize(crop, (side, side * 4 // 5), interpolation=cv2.INTER_AREA)
        (folder / f"photo{k:02d}.png").write_bytes(images.encode_png(pixels))
    write_manifest(import_folder(Source(folder, "pristine")), folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("pristine") / "set", 4)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def synthesize(source, out, seed=0, **changes):
    return synthesis.synthesize(source, out, seed=seed, config=replace(SMALL, **changes))


def test_makes_every_version_of_every_photograph(source, tmp_path):
    summary = synthesize(source, tmp_path)
    assert summary == SynthesisSummary(4, 4 * 7, 0, 4, 0, summary.bytes)
    assert summary.bytes == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    manifest = read_manifest(tmp_path)
    pristine = read_manifest(source).set_index("reference")
    keys = set(zip(manifest["reference"], manifest["distortion"], manifest["level"], strict=True))
    distorted = list(itertools.product(SMALL.distortions, SMALL.levels))
    assert keys == {(ref, *key) for ref in pristine.index for key in [("", 0), *distorted]}
    assert set(manifest["split"]) == {"pretrain"}
    assert manifest["image"].is_unique
    assert manifest["mos"].isna().all()
    for row in manifest.itertuples():
        assert images.content_hash(read_picture_bytes(tmp_path, row)) == row.sha256
        photograph = images.fit_within(images.read(source / pristine["image"][row.reference]), 64)
        pixels = read_picture(tmp_path, row)
        assert pixels.shape == photograph.shape == (row.height, row.width, 3)
        if row.kind == "pristine":
            expected = photograph
        else:
            content = pristine["sha256"][row.reference]
            rng = distortions.generator(content, row.distortion, row.level, 0)
            expected = images.as_uint8(distortions.distort(images.as_float(photograph), row.distortion, row.level, rng))
        assert (pixels == expected).all()


def test_weak_labels_are_the_full_reference_scores(source, tmp_path):
    from contrique.data.weak_labels import weak_label

    assert synthesize(source, tmp_path, weak_labels_per_photograph=3).weak_labels == 12
    manifest = read_manifest(tmp_path)
    pristine = {
        row.reference: read_picture(tmp_path, row) for row in manifest[manifest["kind"] == "pristine"].itertuples()
    }
    rows = manifest[manifest["weak_label"].notna()]
    for row in rows.itertuples():
        assert row.weak_label == weak_label(read_picture(tmp_path, row), pristine[row.reference])
    assert (rows["kind"] == "pristine").sum() == 4


def test_weak_labels_are_balanced_over_distortions():
    config = SynthesisConfig(weak_labels_per_photograph=1 + 25 * 2 + 5)
    for content in ("aa", "bb"):
        versions = draw_weakly_labelled(content, 0, config)
        assert Version("", 0) in versions
        counts = Counter(version.distortion for version in versions if version.distortion)
        assert len(versions) == 56
        assert set(counts.values()) == {2, 3}
    assert draw_weakly_labelled("aa", 0, config) != draw_weakly_labelled("bb", 0, config)
    assert draw_weakly_labelled("aa", 0, config) != draw_weakly_labelled("aa", 1, config)
    assert draw_weakly_labelled("aa", 0, replace(config, weak_labels_per_photograph=0)) == set()
    assert len(draw_weakly_labelled("aa", 0, SynthesisConfig())) == 126
    spread = Counter(
        version.level for k in range(200) for version in draw_weakly_labelled(str(k), 0, config) if version.level
    )
    assert min(spread.values()) > 0.8 * max(spread.values())


def test_worker_count_does_not_matter(source, tmp_path):
    synthesize(source, tmp_path / "one", weak_labels_per_photograph=2, workers=1)
    synthesize(source, tmp_path / "three", weak_labels_per_photograph=2, workers=3)
    assert digest(tmp_path / "one") == digest(tmp_path / "three")


def test_seed_and_order_of_rows(source, tmp_path):
    synthesize(source, tmp_path / "a")
    synthesize(source, tmp_path / "b", seed=1)
    a, b = (read_manifest(tmp_path / name).set_index("image") for name in "ab")
    same = a["sha256"] == b["sha256"]
    assert same[a["distortion"].isin(["", "jpeg"])].all()
    assert not same[a["distortion"] == "white_noise"].any()
    assert (tmp_path / "a/shards/000000.tar").read_bytes().find(b"ustar") > 0
    backwards = read_manifest(source).iloc[::-1]
    copy = tmp_path / "turned"
    shutil.copytree(source, copy)
    write_manifest(backwards, copy)
    synthesize(copy, tmp_path / "c")
    c = read_manifest(tmp_path / "c").set_index("image")
    assert (c["sha256"].sort_index() == a["sha256"].sort_index()).all()


def test_shards_hold_whole_photographs(source, tmp_path):
    summary = synthesize(source, tmp_path, photographs_per_shard=3)
    assert summary.shards == 2
    manifest = read_manifest(tmp_path)
    assert manifest.groupby("reference")["shard"].nunique().max() == 1
    assert manifest.groupby("shard")["reference"].nunique().tolist() == [3, 1]


def test_tar_is_plain_and_knows_nothing_of_this_machine(source, tmp_path):
    import tarfile

    synthesize(source, tmp_path)
    with tarfile.open(tmp_path / "shards/000000.tar") as tar:
        members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        rows = read_manifest(tmp_path).query("shard == 'shards/000000.tar'")
        assert [(m.name, m.offset_data, m.size) for m in members] == list(
            zip(rows["image"], rows["offset"], rows["size"], strict=True)
        )


def test_finished_shards_are_kept(source, tmp_path):
    synthesize(source, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert synthesize(source, tmp_path).resumed == 4
    assert synthesize(source, tmp_path, workers=2).resumed == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()} == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_side": 48}, {"levels": (2,)}, {"weak_labels_per_photograph": 2}])
def test_shards_of_other_inputs_are_made_anew(source, tmp_path, change):
    synthesize(source, tmp_path / "a")
    assert synthesize(source, tmp_path / "a", **change).resumed == 0
    synthesize(source, tmp_path / "b", **change)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_only_the_shard_of_a_changed_photograph_is_made_anew(source, tmp_path):
    changing = tmp_path / "set"
    shutil.copytree(source, changing)
    synthesize(changing, tmp_path / "a")
    photo = sorted(changing.glob("*.png"))[1]
    photo.write_bytes(images.encode_png(images.read(photo)[::-1].copy()))
    with pytest.raises(SynthesisError, match=r"photo01.png: changed since its manifest was made"):
        synthesize(changing, tmp_path / "never")
    write_manifest(import_folder(Source(changing, "pristine")), changing)
    assert synthesize(changing, tmp_path / "a").resumed == 3


def test_fewer_photographs_leave_no_stale_shards(source, tmp_path):
    synthesize(source, tmp_path / "out")
    fewer = tmp_path / "fewer"
    shutil.copytree(source, fewer)
    write_manifest(read_manifest(source).iloc[:2], fewer)
    assert synthesize(fewer, tmp_path / "out").resumed == 2
    assert len(list((tmp_path / "out/shards").iterdir())) == 4
    assert len(read_manifest(tmp_path / "out")) == 14


def test_truncated_shard_is_made_anew(source, tmp_path):
    synthesize(source, tmp_path)
    expected = digest(tmp_path)
    shard = tmp_path / "shards/000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1024])
    assert synthesize(source, tmp_path).resumed == 3
    assert digest(tmp_path) == expected


RUN = textwrap.dedent("""
    import sys
    from pathlib import Path
    from contrique.data import synthesis
    from contrique.config import SynthesisConfig

    if __name__ == "__main__":
        config = SynthesisConfig(max_side=0, weak_labels_per_photograph=0, workers=int(sys.argv[3]),
                                 distortions=tuple(sys.argv[4].split(",")))
        synthesis.synthesize(Path(sys.argv[1]), Path(sys.argv[2]), seed=0, config=config)
""")


def command(tmp_path: Path, source: Path, out: Path, workers: int, names: str) -> list[str]:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    return [sys.executable, str(script), str(source), str(out), str(workers), names]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_run_goes_on_to_the_same_bytes(tmp_path, workers):
    source = write_photographs(tmp_path / "source", 8, side=240)
    arguments = (tmp_path, source, tmp_path / "out", workers, "jpeg2000,color_quantization")
    run = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL)
    shards = tmp_path / "out/shards"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("*.json")) if shards.is_dir() else []) < 2:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    count = len(list(shards.glob("*.json")))
    assert 2 <= count < 8
    assert not (tmp_path / "out" / MANIFEST).exists()
    (shards / ".000007.tar.0123abcd.tmp").write_bytes(b"half")  # whatever the moment of the kill, such a one goes
    subprocess.run(command(*arguments), check=True, capture_output=True)
    synthesize(
        source, tmp_path / "whole", distortions=("jpeg2000", "color_quantization"), levels=(1, 2, 3, 4, 5), max_side=0
    )
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_workers_die_with_a_killed_parent(tmp_path):
    source = write_photographs(tmp_path / "source", 6, side=240)
    out = tmp_path / "out"
    mark = str(out)
    environment = {**os.environ, VARIABLE: mark}
    run = subprocess.Popen(command(tmp_path, source, out, 2, "jpeg2000"), env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("shards/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert len(find_processes(mark)) >= 3
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert survivors(mark) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_is_one_clear_error(source, tmp_path, workers):
    """On a real file system with room for about two of the four shards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(DiskFull, match=r"\.tar: no space left \(No space left on device\); make room .* run again"):
            synthesize(source, disk / "out", workers=workers)
        names = {path.name for path in (disk / "out/shards").iterdir()}
        assert not any(name.endswith(".tmp") for name in names)
        for name in names:  # what is there is whole
            if name.endswith(".json"):
                sidecar = json.loads((disk / "out/shards" / name).read_text())
                assert (disk / "out/shards" / name).with_suffix(".tar").stat().st_size == sidecar["bytes"]
        assert not (disk / "out" / MANIFEST).exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        synthesize(source, disk / "out", workers=workers)
        synthesize(source, tmp_path / "whole")
        assert digest(disk / "out") == digest(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_size_limit_is_the_same_error(source, tmp_path):
    """Needs no root: the kernel refuses to let any file grow beyond the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DiskFull, match="no space left"):
            synthesize(source, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "shards").iterdir()) == []


PEAK = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from contrique.data import synthesis
    from contrique.config import SynthesisConfig

    config = SynthesisConfig(distortions=("jpeg", "gaussian_blur"), weak_labels_per_photograph=0, workers=1)
    synthesis.synthesize(Path(sys.argv[1]), Path(sys.argv[2]), seed=0, config=config)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
""")


def test_memory_stays_flat(tmp_path):
    peaks = []
    for count in (4, 40):
        source = write_photographs(tmp_path / f"source{count}", count, side=320)
        arguments = [sys.executable, "-c", PEAK, str(source), str(tmp_path / f"out{count}")]
        peaks.append(int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout))
    kilobytes = sum(path.stat().st_size for path in (tmp_path / "out40/shards").glob("*.tar")) / 1024
    assert kilobytes > 3 * 12_000  # kilobytes: keeping the pictures would show
    assert peaks[1] < peaks[0] + 12_000


@pytest.mark.parametrize("workers", [1, 2])
def test_undecodable_photograph_is_named(source, tmp_path, workers):
    bad = tmp_path / "bad"
    shutil.copytree(source, bad)
    photo = bad / "photo02.png"
    photo.write_bytes(photo.read_bytes()[:2000])
    manifest = read_manifest(bad)
    manifest.loc[2, "sha256"] = images.content_hash(photo.read_bytes())
    write_manifest(manifest, bad)
    with pytest.raises(images.BadImage, match=r"photo02.png: damaged or truncated"):
        synthesize(bad, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_too_small_photograph_is_named(tmp_path):
    source = write_photographs(tmp_path / "source", 2)
    (source / "tiny.png").write_bytes(images.encode_png(np.zeros((20, 40, 3), np.uint8)))
    write_manifest(import_folder(Source(source, "pristine")), source)
    with pytest.raises(SynthesisError, match=r"tiny.png: image must be at least 32 x 32"):
        synthesize(source, tmp_path / "out")


def test_missing_photograph_is_named(source, tmp_path):
    copy = tmp_path / "gone"
    shutil.copytree(source, copy)
    (copy / "photo00.png").unlink()
    with pytest.raises(images.BadImage, match=r"photo00.png: cannot be read"):
        synthesize(copy, tmp_path / "out")


def test_nothing_to_distort(source, tmp_path):
    manifest = read_manifest(source)
    manifest["kind"] = "authentic"
    write_manifest(manifest, tmp_path)
    with pytest.raises(SynthesisError, match="no pristine photographs"):
        synthesize(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("change", [{"distortions": ("blur",)}, {"levels": (6,)}])
def test_unknown_distortions_and_levels_are_refused_at_once(source, tmp_path, change):
    with pytest.raises(distortions.DistortionError):
        synthesize(source, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("parts", [2, 9])
def test_parts_gathered_are_the_whole(source, tmp_path, parts):
    """To the byte, also with more parts than photographs; what a part lacks is made."""
    summary = synthesize(source, tmp_path / "whole")
    folders = [tmp_path / f"part{k}" for k in range(parts)]
    summaries = [
        synthesis.synthesize(source, folder, seed=0, config=SMALL, part=(k, parts)) for k, folder in enumerate(folders)
    ]
    assert sum(part.pictures for part in summaries) == summary.pictures
    whole = join_parts(source, folders, tmp_path / "gathered", seed=0, config=SMALL)
    assert digest(tmp_path / "gathered") == digest(tmp_path / "whole")
    assert (whole.photographs, whole.resumed) == (summary.photographs, summary.shards)
    join_parts(source, folders[1:], tmp_path / "mended", seed=0, config=SMALL)
    assert digest(tmp_path / "mended") == digest(tmp_path / "whole")
