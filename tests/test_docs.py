"""The commands and links of README and docs: each command is understood by the program that it names."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model
from PIL import Image

import pipelines.__main__
from contrique.cli.main import build_parser
from contrique.config import RegistryConfig
from contrique.registry.registration import register
from contrique.scoring.scorer import TOLERANCE

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "RESULTS.md"])


def commands(program: str) -> list[str]:
    """Indented commands of all pages that start with `program`; continued lines joined, comments cut."""
    lines = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines += [line.strip() for line in text.splitlines() if line.startswith(f"    {program} ")]
    return sorted(set(lines))


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command: str) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    process = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("command", commands("contrique"))
def test_contrique_commands_parse(command: str) -> None:
    build_parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("command", commands("torchrun"))
def test_torchrun_commands_parse(command: str) -> None:
    words = shlex.split(command, comments=True)
    assert words[words.index("-m") + 1] == "contrique.cli"
    build_parser().parse_args(words[words.index("-m") + 2 :])


@pytest.mark.parametrize("command", commands("python -m pipelines"))
def test_pipelines_commands_parse(command: str) -> None:
    pipelines.__main__.build_parser().parse_args(shlex.split(command, comments=True)[3:])


@pytest.mark.parametrize("command", [c for c in commands("python") if " benchmarks/" in c])
def test_benchmarks_understand_their_options(command: str) -> None:
    words = shlex.split(command, comments=True)
    process = subprocess.run(
        [sys.executable, *words[1:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in (word for word in words if word.startswith("--")):
        assert option.partition("=")[0] in process.stdout


def test_dvc_commands_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "*.local"))
    dvc = Path(sys.executable).with_name("dvc")
    lines = commands("dvc remote")
    assert len(lines) == 2
    subprocess.run([dvc, "config", "core.no_scm", "true"], cwd=tmp_path, check=True)
    for command in lines:
        subprocess.run([dvc, *shlex.split(command)[1:]], cwd=tmp_path, check=True, capture_output=True)
    config = (tmp_path / ".dvc" / "config").read_text()
    assert "remote = team" in config
    assert config.count("verify = true") == 2


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a champion and two pictures in the working directory."""
    parts = tiny_model.build(tmp_path / "parts")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    register(tiny_model.candidate(parts, ""), config=RegistryConfig(serve_seconds=0), run="monday")
    Image.fromarray(tiny_model.picture(0)).save("photo.jpg")
    Image.fromarray(tiny_model.picture(1)).save("scan.tif")
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    environment = os.environ | {"CONTRIQUE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    first, second, third = process.stdout.splitlines()
    assert first.split()[-1] == "1"
    assert float(first.split()[0]) == pytest.approx(float(second.split()[1]), abs=TOLERANCE)  # alone and in a batch
    assert third.startswith("scan.tif ")
    assert Image.open("heat.png").size == Image.open("photo.jpg").size


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_a_page_fits_a_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for page in PAGES:
        text = page.read_text()
        assert text.endswith("\n"), page.name
        prose = [line for line in text.splitlines() if not line.startswith(("|", "[<img", "![", "    "))]
        assert not [f"{page.name}: {line}" for line in prose if len(line) > 120]


def test_tests_that_a_page_names_exist() -> None:
    names = {name for page in PAGES for name in re.findall(r"\btests/[\w/]+\.py\b", page.read_text())}
    assert len(names) > 10
    assert not [name for name in sorted(names) if not (ROOT / name).is_file()]


def test_every_page_has_commands_to_check() -> None:
    assert len(commands("make")) >= 3
    assert len(commands("contrique")) >= 4
    assert len(commands("python -m pipelines")) >= 3
    assert len(commands("torchrun")) >= 1
