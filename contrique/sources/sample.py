"""The sample data: real photographs out of the installed wheels of scikit-image, scikit-learn and matplotlib.

    dvc pull

restores them from the project's default remote, the folder `.dvc-remote`, which is committed with it.

    python -m contrique.sources.sample [PROJECT] [--repin]

built them from those wheels, and puts them into a project's remote if it does not hold yet what `data.dvc` pins: into
the S3 of a team, say. The sample has no human scores: the pipeline judges it by full-reference metrics of distorted
versions, weak labels as in KADIS-700k.
"""

import argparse
import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from contrique import images
from contrique.artifacts import PIN
from contrique.data.manifest import Kind, Split, as_manifest, inspect_file, write_manifest
from contrique.errors import ContriqueError
from contrique.files import write_aside
from contrique.sources.dvc_pin import dir_hash, is_published, list_files, publish, read_pin

MAX_SIDE = 512


class SampleDataError(ContriqueError):
    """Sample data that cannot be built as they are pinned."""


@dataclass(frozen=True)
class _Photograph:
    file: str
    kind: Kind
    split: Split
    licence: str  # what the package's own notice says, the docstring of `skimage.data` or the README of scikit-learn
    credit: str = ""


_CC0 = "CC0-1.0"
_FREE = "no known copyright restrictions"
_CC_BY = "CC-BY-2.0"
_PUBLIC = "public domain"
_NO_NOTICE = "with the package; no notice of its own"
_SKIMAGE = "skimage/data"
_SKLEARN = "sklearn/datasets/images"
_MATPLOTLIB = "matplotlib/mpl-data/sample_data"
# One view of the stereo pair `motorcycle` alone: the other is a near-duplicate. Two contents are for the test part,
# since SRCC over the versions of one photograph says nothing of another one.
_PHOTOGRAPHS = (
    _Photograph(f"{_SKIMAGE}/coffee.png", "pristine", "pretrain", _CC0, "Rachel Michetti"),
    _Photograph(
        f"{_SKIMAGE}/motorcycle_left.png", "pristine", "pretrain", _NO_NOTICE, "Middlebury 2014 stereo benchmark"
    ),
    _Photograph(f"{_SKLEARN}/china.jpg", "pristine", "pretrain", _CC_BY, "danielbuechele"),
    _Photograph(f"{_SKIMAGE}/hubble_deep_field.jpg", "pristine", "pretrain", _PUBLIC, "NASA"),
    _Photograph(f"{_SKIMAGE}/retina.jpg", "pristine", "pretrain", _CC0, "Mikael Häggström"),
    _Photograph(f"{_SKIMAGE}/brick.png", "pristine", "pretrain", _CC0, "CC0Textures"),
    _Photograph(f"{_SKIMAGE}/gravel.png", "pristine", "pretrain", _CC0, "CC0Textures"),
    _Photograph(f"{_SKIMAGE}/clock_motion.png", "authentic", "pretrain", _PUBLIC, "Stefan van der Walt"),
    _Photograph(f"{_SKIMAGE}/coins.png", "authentic", "pretrain", _FREE, "Brooklyn Museum Collection"),
    _Photograph(f"{_SKIMAGE}/moon.png", "authentic", "pretrain", _NO_NOTICE),
    _Photograph(f"{_SKIMAGE}/page.png", "authentic", "pretrain", _NO_NOTICE),
    _Photograph(f"{_SKIMAGE}/text.png", "authentic", "pretrain", _PUBLIC, "Wikipedia"),
    _Photograph(f"{_SKIMAGE}/cell.png", "authentic", "pretrain", _CC0, "Paul Müller et al."),
    _Photograph(f"{_SKIMAGE}/ihc.png", "authentic", "pretrain", _FREE, "CMMI"),
    _Photograph(f"{_SKIMAGE}/astronaut.png", "pristine", "train", _PUBLIC, "NASA"),
    _Photograph(f"{_SKIMAGE}/camera.png", "pristine", "train", _CC0, "Lav Varshney"),
    _Photograph(f"{_SKLEARN}/flower.jpg", "pristine", "train", _CC_BY, "vultilion"),
    _Photograph(f"{_MATPLOTLIB}/grace_hopper.jpg", "pristine", "validation", _NO_NOTICE),
    _Photograph(f"{_SKIMAGE}/chelsea.png", "pristine", "test", _CC0, "Stefan van der Walt"),
    _Photograph(f"{_SKIMAGE}/rocket.jpg", "pristine", "test", _PUBLIC, "SpaceX"),
)


def write(out: Path) -> None:
    """Write the sample data as a picture set, the same bytes on any machine with the same versions.

    Args:
        out: the folder to make; an existing one is replaced.
    Raises:
        SampleDataError: a package or one of its photographs is not installed.
        images.BadImage: a photograph is damaged.
    """
    with write_aside(out) as aside:
        (aside / "images").mkdir(parents=True)
        rows = []
        for photograph in _PHOTOGRAPHS:
            pixels = images.fit_within(images.read(_installed(photograph.file)), MAX_SIDE)
            name = Path(photograph.file).stem
            path = aside / "images" / f"{name}.png"
            # Uncompressed: what zlib-ng makes of the same pixels depends on the processor.
            Image.fromarray(pixels).save(path, compress_level=0)
            rows.append(
                {
                    "image": f"images/{name}.png",
                    "dataset": "sample",
                    "reference": name,
                    "kind": photograph.kind,
                    "split": photograph.split,
                    "source": f"{photograph.file} ({photograph.credit})" if photograph.credit else photograph.file,
                    "licence": photograph.licence,
                }
                | inspect_file(path)
            )
        write_manifest(as_manifest(rows), aside)


def _installed(file: str) -> Path:
    package, _, inside = file.partition("/")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / inside if folders else None
    if path is None or not path.is_file():
        raise SampleDataError(f"{file}: not installed; install the package with `pip install -e .`")
    return path


def build(project: Path, *, repin: bool = False) -> str:
    """Fill a project's DVC remote with the sample data that its `data.dvc` pins.

    Nothing is built if the remote holds them already, and nothing in the project is touched.

    Args:
        project: folder with `data.dvc` and `.dvc/config`.
        repin: build in any case, and make `data.dvc` pin what was built.
    Returns:
        the `.dir` hash that `data.dvc` pins.
    Raises:
        SampleDataError: what was built is not what `data.dvc` pins.
        versioning.FetchError: no `data.dvc`, no remote, or the remote does not take the data.
    """
    if not repin and is_published(project):
        return read_pin(project)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        write(folder)
        built = dir_hash(list_files(folder))
        if not repin and built != (pinned := read_pin(project)):
            raise SampleDataError(
                f"{project / PIN}: pins {pinned}, but the sample data built here are {built}; install the "
                "versions of requirements.lock, `dvc push` data of your own, or pin the new ones with --repin"
            )
        text = publish(folder, project)
    if repin:
        with write_aside(project / PIN) as aside:
            aside.write_text(text)
    return built


def main() -> int:
    """Command line of `python -m contrique.sources.sample`."""
    parser = argparse.ArgumentParser(prog="python -m contrique.sources.sample", description="Fill the DVC remote.")
    parser.add_argument("project", nargs="?", type=Path, default=Path(), help="folder with data.dvc (default: here)")
    parser.add_argument("--repin", action="store_true", help="make data.dvc pin what this machine builds")
    arguments = parser.parse_args()
    try:
        print(f"sample data {build(arguments.project, repin=arguments.repin)} are in the DVC remote; next: dvc pull")
    except ContriqueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
