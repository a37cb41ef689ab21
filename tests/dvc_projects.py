"""DVC projects in git, made anew each time."""

import subprocess
from pathlib import Path

import numpy as np

from contrique import images
from contrique.data.manifest import as_manifest, inspect_file, write_manifest
from contrique.sources.dvc_pin import publish

NAMES = ("apple", "pear", "plum", "über the hedge")


def picture(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    (folder / f"{name}.png").write_bytes(images.encode_png(pixels))


def picture_set(folder: Path, seed: int = 0) -> Path:
    rows = []
    for number, name in enumerate(NAMES):
        picture(folder / "images", name, seed + number)
        row = {
            "image": f"images/{name}.png",
            "reference": name,
            "kind": "pristine",
            "split": "pretrain",
            "dataset": "f",
        }
        rows.append(row | inspect_file(folder / "images" / f"{name}.png"))
    write_manifest(as_manifest(rows), folder)
    return folder


def git(project: Path, *arguments: str) -> str:
    options = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(["git", *options, *arguments], cwd=project, check=True, capture_output=True, text=True).stdout


def dvc_project(folder: Path, url: str, options: str = "") -> Path:
    (folder / ".dvc").mkdir(parents=True)
    config = f"[core]\n    remote = team\n    analytics = false\n['remote \"team\"']\n    url = {url}\n{options}"
    (folder / ".dvc" / "config").write_text(config)
    (folder / ".gitignore").write_text("/.dvc/cache\n/.dvc/tmp\n/store\n/data\n")
    (folder / "data.dvc").write_text(publish(picture_set(folder.parent / "built"), folder))
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "data")
    return folder


def flip(path: Path) -> None:
    """Change one byte in place, as a failing disk does."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
