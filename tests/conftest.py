"""What several test modules share: the sample photographs and a real S3 server."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from contrique import sample_data


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample picture set, built once. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("sample") / "data"
    sample_data.write(folder)
    return folder


@dataclass(frozen=True)
class S3:
    """A running S3 server with one bucket.

    Attributes:
        bucket: URL of the bucket, `s3://NAME`.
        environment: what AWS clients need to reach it.
    """

    bucket: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS, the object store that Kubeflow Pipelines ships."""
    folder = tmp_path_factory.mktemp("s3")
    identity = {"credentials": [{"accessKey": "tester", "secretKey": "tester-secret"}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity | {"name": "tester"}]}))
    names = [f"{part}.{port}" for part in ("s3", "master", "volume", "filer") for port in ("port", "port.grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder}",
        "-s3",
        "-master.telemetry=false",
    ]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder / 's3.json'}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]
    command += ["-volume.max=20", "-master.volumeSizeLimitMB=64"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as server:
        try:
            _wait_for_bucket(environment, server, folder / "log")
            yield S3("s3://contrique", environment)
        finally:
            server.kill()  # at its own pace it takes half a minute


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The S3 server, with the environment of this test pointing at it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def _free_ports(number: int) -> list[int]:
    """Ports below the range from which the system hands them out to others in the meantime."""
    ports: list[int] = []
    while len(ports) < number:
        port = secrets.randbelow(12_000) + 20_000
        with socket.socket() as one:
            if port not in ports and one.connect_ex(("127.0.0.1", port)):
                ports.append(port)
    return ports


def _wait_for_bucket(environment: dict[str, str], server: subprocess.Popen[bytes], log: Path) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    deadline = time.monotonic() + 180  # a few seconds unless the machine is busy
    while True:
        try:
            client.create_bucket(Bucket="contrique")
            client.put_object(Bucket="contrique", Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
