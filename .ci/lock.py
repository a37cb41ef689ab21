"""Write requirements.lock from what the environment of this Python holds: `make lock`.

One package a line: its pin, the SHA-256 of its files, and which installations need it. The hashes are those that the
package index states for every platform of TARGETS, so that one lock serves them all; a package without a wheel for the
first of them is built from source.
"""

import logging
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip._internal.commands import create_command
from pip._internal.models.target_python import TargetPython

PYTHON = (3, 11)
TARGETS = {
    "linux x86-64": [
        *(f"manylinux_2_{minor}_x86_64" for minor in range(40, 4, -1)),
        *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
    ],
    "linux aarch64": [
        *(f"manylinux_2_{minor}_aarch64" for minor in range(40, 16, -1)),
        *("manylinux2014_aarch64", "linux_aarch64"),
    ],
    "macOS": [
        *(f"macosx_{major}_0_{kind}" for major in range(15, 10, -1) for kind in ("arm64", "universal2", "x86_64")),
        *(f"macosx_10_{minor}_{kind}" for minor in range(16, 8, -1) for kind in ("universal2", "intel", "x86_64")),
    ],
}
ON_LINUX = ("cuda-", "nvidia-", "triton")
# What the extras do not say: the environment of mlflow/Dockerfile, and what builds the package itself.
SERVER = ("mlflow", "boto3", "psycopg2-binary")
HEAD = """\
# Exact versions for Python 3.11, written by `make lock`, with the hashes of their wheels for Linux (x86-64 and aarch64)
# and macOS. After the # of a line: the extras that need it, base for none, server for mlflow/Dockerfile.
"""


def installed() -> dict[str, str]:
    """Names and versions of the packages in this environment, less pip and the project itself."""
    versions = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    return {name: versions[name] for name in sorted(versions.keys() - {"pip", "contrique"})}


def closure(wishes: Iterable[str]) -> set[str]:
    """Names of everything that requirements need here, extras included."""
    names: set[str] = set()
    pending = [Requirement(wish) for wish in wishes]
    visited = set()
    while pending:
        wish = pending.pop()
        key = (canonicalize_name(wish.name), frozenset(wish.extras))
        if key in visited:
            continue
        visited.add(key)
        names.add(key[0])
        for line in metadata.requires(wish.name) or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wish.extras or {""}):
                pending.append(need)
    return names


def groups(project: dict[str, Any]) -> dict[str, set[str]]:
    """Name of an installation -> the packages that it needs beyond the base, which is one too.

    Args:
        project: the table of that name in pyproject.toml.
    """
    base = closure(project["dependencies"])
    extras = {extra: closure(wishes) - base for extra, wishes in project["optional-dependencies"].items()}
    return {"base": base} | extras | {"server": closure(SERVER)}


def hashes(pins: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Each name with the hashes that the package index states for the files of its version."""
    command = create_command("download")
    options, _ = command.parse_args(["--no-deps", "none"])
    logging.getLogger("pip").setLevel(logging.ERROR)  # it warns of each index that lacks a package
    with command.main_context():
        session = command.get_default_session(options)
        finders = [
            command._build_package_finder(options, session, TargetPython(platforms=tags, py_version_info=PYTHON))
            for tags in TARGETS.values()
        ]
        for name, version in pins.items():
            links = [
                [each.link for each in finder.find_all_candidates(name) if str(each.version) == version]
                for finder in finders
            ]
            wheels = {link.hash for each in links for link in each if link.is_wheel}
            archives = {link.hash for link in links[0] if not link.is_wheel}
            files = wheels if any(link.is_wheel for link in links[0]) else wheels | archives
            if not files or None in files:
                raise SystemExit(f"{name}=={version}: the package index states no hash")
            yield name, sorted(files)


def main(out: Path) -> None:
    pins = installed()
    needs = groups(tomllib.loads(Path("pyproject.toml").read_text())["project"])
    lines = []
    for name, files in hashes(pins):
        marker = '; sys_platform == "linux"' if name.startswith(ON_LINUX) else ""
        users = " ".join(group for group, names in needs.items() if name in names) or "dev"
        lines.append(f"{name}=={pins[name]}{marker} {' '.join(f'--hash=sha256:{each}' for each in files)}  # {users}\n")
    out.write_text(HEAD + "".join(lines))
    print(f"{out}: {len(lines)} pins")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
