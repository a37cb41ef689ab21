"""Servers that tests run against."""

from dataclasses import dataclass


@dataclass(frozen=True)
class S3:
    """A running S3 server with one bucket.

    Attributes:
        bucket: URL of the bucket, `s3://NAME`.
        environment: what AWS clients need to reach it.
    """

    bucket: str
    environment: dict[str, str]
