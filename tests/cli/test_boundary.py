"""Where commands end: outputs are looked at before the work, errors are one line, Ctrl-C is the parent's alone."""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import tiny_model
from PIL import Image

from contrique.cli.boundary import run_command
from contrique.cli.main import main
from contrique.cli.options import Parser, add_output
from contrique.files import StorageError, check_writable
from contrique.interrupts import shield_children
from pipelines.__main__ import main as pipelines

ROOT = Path(__file__).parents[2]
LONG = "x" * 256


def fail(error: BaseException) -> int:
    """The status of a command that raises."""

    def command(_: argparse.Namespace) -> None:
        raise error

    def build() -> argparse.ArgumentParser:
        parser = Parser(prog="test")
        parser.set_defaults(command=command)
        return parser

    return run_command(build, [], "test")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "locked.png"), 2, "locked.png: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", LONG), 2, "File name too long"),
        (OSError("a library says no more"), 2, "a library says no more"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "not enough memory (Unable to allocate 9 TiB)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), 2, "not enough memory"),
        (RecursionError("maximum depth"), 2, "the input is nested too deeply"),
        (StorageError("one\ttwo: s3://me:secret@host/x"), 2, r"one\ttwo: s3://***@host/x"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_expected_error_is_one_line(error, status, message, capsys):
    assert fail(error) == status
    line = capsys.readouterr().err
    assert line.startswith("test: ")
    assert message in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("a bug"), ValueError("another")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        fail(error)


def test_warnings_of_libraries_are_hidden_and_their_filters_put_back(capsys):
    def build() -> argparse.ArgumentParser:
        parser = Parser(prog="test")
        parser.set_defaults(command=lambda _: warnings.warn("deprecated", DeprecationWarning, stacklevel=1))
        return parser

    filters, options = warnings.filters[:], sys.warnoptions[:]
    assert run_command(build, [], "test") == 0
    assert capsys.readouterr().err == ""
    assert (warnings.filters, sys.warnoptions) == (filters, options)


class TestOutputs:
    @pytest.mark.parametrize("place", ["/proc/x", "/sys/x", "picture.png/x", "folder", f"{LONG}", f"new/{LONG}/x"])
    def test_a_file_that_cannot_be_written_is_refused(self, place, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("picture.png").touch()
        Path("folder").mkdir()
        with pytest.raises(StorageError, match=r"; (choose|give)"):
            check_writable(Path(place))
        assert {path.name for path in tmp_path.iterdir()} == {"picture.png", "folder"}

    @pytest.mark.parametrize("place", ["/proc/x", "picture.png", "picture.png/x", "/dev/null", LONG])
    def test_a_folder_that_cannot_be_written_is_refused(self, place, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("picture.png").touch()
        with pytest.raises(StorageError):
            check_writable(Path(place), folder=True)
        assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]

    def test_a_device_is_never_replaced_by_a_file(self):
        with pytest.raises(StorageError, match="no regular file"):
            check_writable(Path("/dev/null"))

    @pytest.mark.parametrize(("place", "folder"), [("new.png", False), ("a/b/new.png", False), ("a/b", True)])
    def test_a_place_that_can_is_left_as_it_is(self, place, folder, tmp_path):
        check_writable(tmp_path / place, folder=folder)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "arguments",
        [
            ["explain", "photo.png", "--out", "/proc/x.png"],
            ["distort", "photo.png", "--name", "jpeg", "--level", "3", "--out", "photo.png/x.png"],
            ["distort", "photo.png", "--sheet", "/sys/x.png"],
            ["features", "photo.png", "--encoder", "none.safetensors", "--out", "/proc/f.npz"],
            ["synthesize", ".", "--out", "/proc/x"],
            ["validate", ".", "--report", "/proc/x.html"],
            ["pretrain", "--pristine", ".", "--authentic", ".", "--out", "/proc/x"],
            ["adapt", "--labels", "none.csv", "--out", "/proc/x"],
            ["benchmark", "--data", "a:.", "--model", "1", "--out", "/proc/x"],
            ["import-checkpoint", "none.tar", "--out", "/proc/x.safetensors"],
        ],
    )
    def test_each_command_looks_at_its_output_first(self, arguments, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Image.fromarray(tiny_model.picture(0)).save("photo.png")
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "choose another place" in err

    @pytest.mark.parametrize(
        "arguments", [["compile", "--out", "/proc/t.yaml"], ["run", "--data", ".", "--runs", "/proc/runs"]]
    )
    def test_pipelines_do_too(self, arguments, capsys):
        assert pipelines(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("arguments", [["synthesize", "", "--out", "x"], ["distort", "a.png", "--sheet", ""]])
    def test_an_empty_path_is_not_the_working_directory(self, arguments, capsys):
        assert main(arguments) == 2
        assert "is empty; give a path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["distort", "a.png", "--level", "6"],
        ["distort", "a.png", "--seed", "-1"],
        ["synthesize", ".", "--out", "x", "--workers", "0"],
        ["serve", "--port", "99999"],
        ["pretrain", "--out", "x", "--minutes", "nan"],
        ["pretrain", "--out", "x", "--minutes", "-inf"],
    ],
)
def test_numbers_out_of_range_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_standard_output_that_cannot_be_written(redirection, tmp_path):
    command = f'exec "$0" -m contrique.cli models {redirection}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.run(
        ["bash", "-c", command, sys.executable], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("contrique: ")


def test_children_do_not_see_ctrl_c():
    child = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    with shield_children():
        process = subprocess.Popen(child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    assert process.communicate()[1] == ""


def test_ctrl_c_that_came_meanwhile_is_not_lost():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
    try:
        with pytest.raises(KeyboardInterrupt), shield_children():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ctrl_c_while_workers_distort(tmp_path):
    """As a terminal sends it: to the whole group."""
    (tmp_path / "photographs").mkdir()
    for i in range(24):
        Image.fromarray(tiny_model.picture(i, 300, 300)).save(tmp_path / "photographs" / f"{i}.png")
    command = [sys.executable, "-m", "contrique.cli", "synthesize", "photographs", "--out", "set", "--workers", "2"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(tmp_path.glob("set/shards/*.tar")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "contrique: interrupted"


def test_an_option_for_an_output_keeps_its_name():
    parser = Parser(prog="test")
    add_output(parser, "--out", help="x")
    add_output(parser, "--cache", folder=True, help="x")
    assert parser.get_default("outputs") == (("out", False), ("cache", True))


@pytest.mark.parametrize("command", ["distort", "import-checkpoint", "adapt"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "sparse"])
def test_what_is_no_file_of_a_bearable_size_is_refused_at_once(tmp_path, capsys, command, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(10**13)
    else:
        path.symlink_to(kind)
    out = str(tmp_path / "out")
    arguments = {
        "distort": ["distort", str(path), "--sheet", out],
        "import-checkpoint": ["import-checkpoint", str(path), "--out", out],
        "adapt": ["adapt", "--labels", str(path), "--model", "bundled", "--out", out],
    }[command]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search("not a regular file|10 TB is over", message)


def test_a_file_of_the_system_cannot_forge_a_line(tmp_path, capsys):
    name = "a\ncontrique: all is well\x1b[2J"

    def build() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        parser.set_defaults(command=lambda _: (tmp_path / name).read_bytes())
        return parser

    assert run_command(build, [], "contrique") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "\x1b" not in message
