"""A Kubeflow cluster, through KFP's own client: start a run, make a recurring one, upload a version."""

import contextlib
import datetime
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kfp import compiler, dsl

from contrique.errors import ContriqueError

_ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}  # states of a run in KFP's API
_POLL_SECONDS = 10
_TOKEN = "KF_PIPELINES_SA_TOKEN_PATH"  # KFP's own variable: a service account's token, in a pod


class ClusterError(ContriqueError):
    """The cluster cannot be reached, refuses, or the run failed there."""


@dataclass(frozen=True)
class Cluster:
    """Where to.

    Attributes:
        host: address of the Kubeflow Pipelines API.
        experiment: that the run belongs to; made if missing.
        namespace: in a Kubeflow with profiles, the profile; empty without.
    """

    host: str
    experiment: str = "contrique"
    namespace: str = ""

    def submit(self, pipeline: dsl.base_component.BaseComponent, arguments: dict[str, Any], name: str = "") -> str:
        """Start a run.

        Args:
            pipeline: compiled on the way.
            arguments: of the pipeline.
            name: of the run; `title` if empty.
        Returns:
            the run's id.
        Raises:
            ClusterError: the API cannot be reached or refuses.
        """
        with self._client() as client:
            started = client.create_run_from_pipeline_func(
                pipeline,
                arguments=arguments,
                run_name=name or title(arguments),
                experiment_name=self.experiment,
                namespace=self.namespace or None,
            )
            return str(started.run_id)

    def wait(self, run: str) -> None:
        """Until a run ends.

        Raises:
            ClusterError: it did not succeed, or the API cannot be reached.
        """
        with self._client() as client:
            # not KFP's own wait_for_run_completion: it waits on for a run that was cancelled
            while (ended := client.get_run(run)).state not in _ENDED:
                time.sleep(_POLL_SECONDS)
        print(f"run {run}: {ended.state}")
        if ended.state != "SUCCEEDED":
            raise ClusterError(f"run {run} ended as {ended.state}; its page in the Kubeflow UI shows where")

    def schedule(
        self, pipeline: dsl.base_component.BaseComponent, arguments: dict[str, Any], cron: str, name: str = ""
    ) -> str:
        """Make a recurring run: one at a time, and of the runs that were missed only the last.

        Args:
            pipeline, arguments: as `submit`.
            cron: six fields, seconds first, or the usual five.
            name: of the recurring run.
        Returns:
            its id.
        Raises:
            ClusterError: the API cannot be reached or refuses.
        """
        fields = cron.split()
        with self._client() as client, _compiled(pipeline) as package:
            experiment = client.create_experiment(self.experiment, namespace=self.namespace or None)
            made = client.create_recurring_run(
                experiment.experiment_id,
                name or title(arguments),
                description=" ".join((pipeline.description or "").split()),
                cron_expression=" ".join(["0"] * (6 - len(fields)) + fields),
                max_concurrency=1,
                no_catchup=True,
                params=arguments,
                pipeline_package_path=package,
            )
            return str(made.recurring_run_id)

    def upload(self, pipeline: dsl.base_component.BaseComponent, version: str, description: str) -> str:
        """Upload a version of a pipeline, for people to run from the UI; the pipeline itself if it is new.

        Args:
            version: its name, new for this pipeline.
            description: shown beside it.
        Returns:
            the id of the version.
        Raises:
            ClusterError: the API cannot be reached or refuses, as it does a version's name that is taken.
        """
        with self._client() as client, _compiled(pipeline) as package:
            known = client.get_pipeline_id(pipeline.name)
            if not known:
                about = " ".join((pipeline.description or "").split())
                known = client.upload_pipeline(
                    package, pipeline.name, description=about, namespace=self.namespace or None
                ).pipeline_id
            made = client.upload_pipeline_version(package, version, pipeline_id=known, description=description)
            return str(made.pipeline_version_id)

    @contextlib.contextmanager
    def _client(self) -> Iterator[kfp.Client]:
        """KFP's client, quiet, and its failures in one line."""
        credentials = None
        if os.environ.get(_TOKEN):
            from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

            credentials = ServiceAccountTokenVolumeCredentials()
        warnings.simplefilter("ignore", FutureWarning)  # KFP's client warns of servers older than 2.0 in any case
        logging.disable(logging.ERROR)  # and logs a traceback for each try to reach the server
        try:
            yield kfp.Client(host=self.host, credentials=credentials)
        except (TimeoutError, kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(
                f"{self.host}: the Kubeflow Pipelines API did not do as asked ({reason}); check --host and the login"
            ) from error
        finally:
            logging.disable(logging.NOTSET)


def title(arguments: dict[str, Any]) -> str:
    """A run's name for people: what data, which revision, which profile, when."""
    data = str(arguments["data"]).rstrip("/").rpartition("/")[2] or "pictures"
    revision = f" @ {arguments['revision']}" if arguments.get("revision") else ""
    return f"{data}{revision}, {arguments['profile']}, {datetime.datetime.now():%Y-%m-%d %H:%M}"


@contextlib.contextmanager
def _compiled(pipeline: dsl.base_component.BaseComponent) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        package = str(Path(folder, "pipeline.yaml"))
        compiler.Compiler().compile(pipeline, package)
        yield package
