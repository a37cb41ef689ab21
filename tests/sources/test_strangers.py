"""Data of strangers: nothing in a foreign repository, project or list of files runs, writes elsewhere or gets a key."""

import hashlib
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc_projects import dvc_project, files, git
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrique.errors import ContriqueError
from contrique.files import inside
from contrique.sources.dvc_pin import Pin, list_files, parse_list, parse_pin, read_pin
from contrique.sources.dvc_remote import FetchError
from contrique.sources.fetch import fetch, fingerprint, refuse_credentials


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return dvc_project(tmp_path / "project", "../store")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists once `command` has run."""
    return tmp_path / "canary"


def script(tmp_path: Path, canary: Path) -> str:
    path = tmp_path / "evil.sh"
    path.write_text(f"#!/bin/sh\ntouch {canary}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server of a stranger's, and the Authorization header of each request to it."""
    headers: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers.append(self.headers.get("Authorization", ""))
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", headers
        server.shutdown()


def commit_config(project: Path, url: str, options: str = "", extra: str = "") -> None:
    text = f"[core]\n    remote = team\n['remote \"team\"']\n    url = {url}\n{options}{extra}"
    (project / ".dvc" / "config").write_text(text)
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "config")


def try_fetch(tmp_path: Path, data: str) -> str:
    """The error of a fetch, one line; empty if there is none."""
    return message_of(lambda: fetch(tmp_path / "out", data=data))


def message_of(action: Callable[[], object]) -> str:
    """What an action says as it fails, one line; empty if it does not fail."""
    try:
        action()
    except ContriqueError as error:
        message = str(error)
    else:
        return ""
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("option", ["configpath", "credentialpath"])
@pytest.mark.parametrize("how", ["clone", "folder", "inside"])
def test_files_with_credentials_of_a_stranger_are_not_read(
    project, tmp_path, canary, endpoint, monkeypatch, option, how
):
    """botocore runs the `credential_process` of a profile."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = script(tmp_path, canary)
    (project / "aws").write_text(f"[profile x]\ncredential_process = {command}\n[x]\ncredential_process = {command}\n")
    options = f"    endpointurl = {endpoint[0]}\n    {option} = ../aws\n    profile = x\n"
    commit_config(project, "s3://bucket/prefix", options)
    if how == "inside":
        monkeypatch.chdir(project)
    location = f"file://{project}/.git" if how == "clone" else str(project)
    assert try_fetch(tmp_path, location)
    assert not canary.exists()
    assert "AWS_SHARED_CREDENTIALS_FILE" not in os.environ
    assert "AWS_CONFIG_FILE" not in os.environ


def test_an_endpoint_of_a_stranger_gets_no_credentials(project, tmp_path, endpoint, monkeypatch):
    url, headers = endpoint
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUSER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    commit_config(project, "s3://bucket/prefix", f"    endpointurl = {url}\n")
    for location in (f"file://{project}", str(project)):
        assert try_fetch(tmp_path, location)
    assert headers
    assert not any(headers)
    headers.clear()
    monkeypatch.setenv("CONTRIQUE_TRUSTED_ENDPOINTS", f"https://other.test,{url}/")
    assert try_fetch(tmp_path, f"file://{project}")
    assert any("AKIAUSER" in header for header in headers)


def test_options_of_the_users_own_level_do_not_go_to_a_stranger(project, tmp_path, endpoint, monkeypatch):
    """A stranger may call a remote as one of the user's is called."""
    url, headers = endpoint
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config").write_text(
        "['remote \"team\"']\n    auth = basic\n    user = me\n    password = word\n"
    )
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "own"))
    commit_config(project, f"{url}/x")
    assert try_fetch(tmp_path, f"file://{project}")
    assert headers
    assert not any(headers)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ssh://host.test/x", "ssh://"),
        ("webdavs://host.test/x", "webdavs://"),
        ("gs://bucket/x", "gs://"),
        ("remote://other/x", "remote://"),
        ("/srv/store", "outside of the repository"),
        ("../../elsewhere", "outside of the repository"),
        ("s3://key:word@bucket/x", "credentials"),
        ("https://token@host.test/x", "credentials"),
        ("https://host.test/x?token=abc", "query"),
        ("s3://evil.test@x/y", "credentials"),
    ],
)
def test_a_remote_of_a_clone_that_is_not_read(project, tmp_path, url, reason):
    commit_config(project, url)
    message = try_fetch(tmp_path, f"file://{project}")
    assert reason in message
    assert "word" not in message
    assert "abc" not in message


@pytest.mark.parametrize("place", ["config", "config.local"])
def test_a_cache_of_a_stranger_is_not_written_to(project, tmp_path, place):
    (project / ".dvc" / place).open("a").write(f"[cache]\n    dir = {tmp_path / 'elsewhere'}\n")
    git(project, "add", "--force", ".")
    git(project, "commit", "--quiet", "--message", "config")
    for location in (f"file://{project}", str(project)):
        try_fetch(tmp_path, location)
        assert not (tmp_path / "elsewhere").exists()


def test_a_clone_with_its_objects_inside(project, tmp_path):
    (project / ".gitignore").write_text("")
    git(project, "add", "--force", "store")
    git(project, "commit", "--quiet", "--message", "objects")
    lineage = fetch(tmp_path / "out", data=f"file://{project}")
    assert lineage.hash == read_pin(project)
    assert lineage.revision == git(project, "rev-parse", "HEAD").strip()


def rewrite_list(project: Path, entries: object) -> None:
    """Put a list of files into the remote and pin it."""
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    md5 = hashlib.md5(content).hexdigest()
    path = project / "store" / "files" / "md5" / md5[:2] / f"{md5[2:]}.dir"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (project / "data.dvc").write_text(f"outs:\n- md5: {md5}.dir\n  hash: md5\n  path: data\n")


@pytest.mark.parametrize(
    "name",
    ["../../victim", "/{tmp}/victim", "a/../../victim", "a\\..\\victim", "C:victim", "C:/victim", "", ".", "a\0b"],
)
def test_a_name_that_leads_out_is_refused_before_anything_is_written(project, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    md5 = list_files(tmp_path / "built")["images/pear.png"]
    rewrite_list(project, [{"md5": md5, "relpath": name.format(tmp=tmp_path)}])
    before = files(tmp_path)
    assert "leads out of its folder" in try_fetch(tmp_path, str(project))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "entries",
    [
        [{"md5": "0" * 32, "relpath": "a"}, {"md5": "0" * 32, "relpath": "./a"}],
        [{"md5": "0" * 32, "relpath": "a"}, {"md5": "0" * 32, "relpath": "a/b"}],
        [{"md5": "../../../etc/passwd", "relpath": "a"}],
        [{"relpath": "a"}],
        {"a": "b"},
        [{"md5": "0" * 32, "relpath": ["a"]}],
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_list_that_is_none(project, tmp_path, entries):
    rewrite_list(project, entries)
    assert "list of files" in try_fetch(tmp_path, str(project))


PIN = "outs:\n- md5: {md5}\n  hash: md5\n  path: data\n"


@pytest.mark.parametrize(
    ("field", "of_out"),
    [
        ("files: [{relpath: ../../victim, md5: abc}]", True),
        ("cloud: {team: {version_id: x}}", True),
        ("cache: false", True),
        ("push: false", True),
        ("deps: [{path: data, repo: {url: git@host.test:x}}]", False),
        ("cmd: touch canary", False),
    ],
)
def test_a_field_of_the_pin_that_is_not_supported_is_named(project, tmp_path, field, of_out):
    text = PIN.format(md5=read_pin(project)) + ("  " if of_out else "") + field + "\n"
    (project / "data.dvc").write_text(text)
    assert f"the field '{field.partition(':')[0]}' is not supported" in try_fetch(tmp_path, str(project))


def test_a_pin_with_a_remote_of_its_own_or_a_working_directory(project, tmp_path):
    """Healthy objects are never called damaged."""
    text = (project / "data.dvc").read_text()
    (project / "data.dvc").write_text(f"wdir: ..\nfrozen: true\n{text}  remote: other\n")
    assert "no remote 'other', which data.dvc names" in try_fetch(tmp_path, str(project))
    config = (project / ".dvc" / "config").read_text().replace("url = ../store", "url = ../nowhere")
    (project / ".dvc" / "config").write_text(f"{config}['remote \"other\"']\n    url = ../store\n")
    assert fetch(tmp_path / "out", data=str(project)).hash == read_pin(project)


def evil_git_settings(command: str, other: Path) -> dict[str, list[str]]:
    return {
        "fsmonitor": ["core.fsmonitor", command],
        "filter": ["filter.evil.clean", command],
        "hooks": ["core.hooksPath", str(Path(command).parent)],
        "ssh": ["core.sshCommand", command],
        "alternates": ["core.alternateRefsCommand", command],
        "include": ["include.path", str(other)],
        "pager": ["core.pager", command],
    }


@pytest.mark.parametrize("kind", ["fsmonitor", "filter", "hooks", "ssh", "alternates", "include", "pager"])
def test_the_git_configuration_of_a_data_folder_is_not_obeyed(project, tmp_path, canary, kind):
    other = tmp_path / "other.conf"
    command = script(tmp_path, canary)
    other.write_text(f"[core]\n\tfsmonitor = {command}\n")
    (project / ".gitattributes").write_text("* filter=evil\n")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "attributes")
    git(project, "config", *evil_git_settings(command, other)[kind])
    canary.unlink(missing_ok=True)
    (project / "data.dvc").touch()  # or git need not look into it
    for revision in ("", "HEAD"):
        assert fetch(tmp_path / "out", data=str(project), revision=revision).revision
    assert fetch(tmp_path / "out", data=str(project)).revision.count("-dirty") == 0
    assert fingerprint(data=str(project))
    try_fetch(tmp_path, f"file://{project}")
    assert not canary.exists()


def test_objects_that_are_not_there_are_not_fetched_by_a_program(project, tmp_path, canary):
    """Of a partial clone git fetches what it lacks, by a program that the repository names."""
    command = script(tmp_path, canary)
    for name, value in {
        "core.repositoryformatversion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": f"ext::{command}",
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": command,
        "protocol.ext.allow": "always",
    }.items():
        git(project, "config", name, value)
    blob = git(project, "rev-parse", "HEAD:data.dvc").strip()
    (project / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    fetch(tmp_path / "out", data=str(project))
    assert "git cat-file failed" in try_fetch_revision(tmp_path, project)
    try_fetch(tmp_path, f"file://{project}")
    assert not canary.exists()


def try_fetch_revision(tmp_path: Path, project: Path) -> str:
    with pytest.raises(FetchError) as error:
        fetch(tmp_path / "out", data=str(project), revision="HEAD")
    return str(error.value)


@pytest.mark.parametrize("location", ["ext::{command} x.git", "x/ext::{command}.git", "-u{command}.git"])
def test_an_address_that_would_run_a_program(tmp_path, canary, location):
    assert try_fetch(tmp_path, location.format(command=script(tmp_path, canary)))
    assert not canary.exists()


def test_a_work_tree_beside_the_first_one_has_its_commit_too(project, tmp_path):
    subprocess.run(["git", "worktree", "add", "-q", str(tmp_path / "second")], cwd=project, check=True)
    (tmp_path / "second" / ".dvc" / "config").write_text(
        (project / ".dvc" / "config").read_text().replace("../store", str(project / "store"))
    )
    lineage = fetch(tmp_path / "out", data=str(tmp_path / "second"))
    assert lineage.revision == git(project, "rev-parse", "HEAD").strip()


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secretword@bucket/x",
        "s3://KEY:secret/word@bucket",
        "file://me:secretword@/x",
        "ssh://me:secretword@host.test/x",
        "git://secretword@host.test/x",
        "HTTPS://secretword@host.test/x",
        "me:secretword@host.test:x.git",
        "https://host.test/x.git?token=secretword",
        "s3://bucket/x?X-Amz-Signature=secretword",
        "tid2013:s3://key:secretword@bucket/x",
    ],
)
def test_credentials_are_refused_in_every_scheme(url):
    with pytest.raises(FetchError) as error:
        refuse_credentials(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "git@host.test:team/x.git",
        "ssh://git@host.test:2222/x.git",
        "s3://bucket/a@b?c",
        "/data/a@b:c",
        "https://host.test:8443/x.git",
        "tid2013:/data/tid",
        "file:///srv/x@y.git",
        "C:/data",
    ],
)
def test_what_holds_no_credentials_passes(url):
    refuse_credentials(url)


def test_a_password_of_a_remote_is_not_told(project, tmp_path, monkeypatch):
    monkeypatch.setenv("CONTRIQUE_TRUSTED_PROJECTS", str(project))
    commit_config(project, "http://me:secretword@127.0.0.1:9/x")
    message = try_fetch(tmp_path, str(project))
    assert "127.0.0.1:9" in message
    assert "secretword" not in message


def test_a_pipe_for_a_pin_or_a_configuration_is_refused_at_once(project, tmp_path):
    for path in (project / ".dvc" / "config", project / "data.dvc"):
        path.unlink()
        os.mkfifo(path)
        assert "not a regular file" in try_fetch(tmp_path, str(project))


LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
TREE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(st.text(max_size=300) | TREE.map(json.dumps) | TREE.map(lambda out: json.dumps({"outs": [out]})))
def test_any_pin_is_one_or_one_clear_line(text):
    message = message_of(lambda: parse_pin(text, "project"))
    assert "data.dvc" in message or parse_pin(text, "project").hash.endswith(".dir")


ENTRY = st.fixed_dictionaries({"md5": st.just("0" * 32) | LEAF, "relpath": st.text(max_size=20) | LEAF})
LISTS = st.binary(max_size=200) | (TREE | st.lists(ENTRY)).map(lambda tree: json.dumps(tree).encode())


@SETTINGS
@given(LISTS)
def test_any_list_is_one_or_one_clear_line(content):
    pin = Pin(hashlib.md5(content).hexdigest() + ".dir", "data")
    message = message_of(lambda: parse_list(content, pin, "project"))
    assert "list of files" in message or all(map(is_inside, parse_list(content, pin, "project")))


def is_inside(name: str) -> bool:
    root = Path("/root/folder")
    path = Path(os.path.normpath(root / name))
    return path.is_relative_to(root) and path != root and not {"\0", "\\"} & set(name)


@SETTINGS
@given(st.lists(st.sampled_from(["..", ".", "", "a", "C:", "\\", "é", "\0"]) | st.text(max_size=4), max_size=5))
def test_any_name_stays_inside_or_is_refused(parts):
    name = "/".join(parts)
    assert message_of(lambda: inside(name, "list")) or is_inside(inside(name, "list").as_posix())
