"""A Kubeflow cluster, through KFP's own client: start a run, make a recurring one, upload a version."""

import contextlib
import datetime
import json
import logging
import os
import re
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
# Versions of Kubeflow Pipelines that a document needs, and what for; docs/kubeflow.md states them.
_NEEDED = {
    "all": ((2, 14), "the run's end is told to its last task"),
    "loops": ((2, 16), "the loops have names (leave out --shards)"),
}
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
        with self._client(pipeline) as client:
            run = client.create_run_from_pipeline_func(
                pipeline,
                arguments=arguments,
                run_name=name or title(arguments),
                experiment_name=self.experiment,
                namespace=self.namespace or None,
            )
            return str(run.run_id)

    def wait(self, run: str) -> None:
        """Until a run ends.

        Raises:
            ClusterError: it did not succeed, or the API cannot be reached.
        """
        with self._client() as client:
            # not KFP's own wait_for_run_completion: it waits on for a run that was cancelled
            while (state := client.get_run(run).state) not in _ENDED:
                time.sleep(_POLL_SECONDS)
        print(f"run {run}: {state}")
        if state != "SUCCEEDED":
            raise ClusterError(f"run {run} ended as {state}; its page in the Kubeflow UI shows where")

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
        with self._client(pipeline) as client, _compiled(pipeline) as package:
            experiment = client.create_experiment(self.experiment, namespace=self.namespace or None)
            run = client.create_recurring_run(
                experiment.experiment_id,
                name or title(arguments),
                description=" ".join((pipeline.description or "").split()),
                cron_expression=" ".join(["0"] * (6 - len(fields)) + fields),
                max_concurrency=1,
                no_catchup=True,
                params=arguments,
                pipeline_package_path=package,
            )
            return str(run.recurring_run_id)

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
        with self._client(pipeline) as client, _compiled(pipeline) as package:
            pipeline_id = self._pipeline(client, pipeline.name)
            if not pipeline_id:
                about = " ".join((pipeline.description or "").split())
                pipeline_id = client.upload_pipeline(
                    package, pipeline.name, description=about, namespace=self.namespace or None
                ).pipeline_id
            uploaded = client.upload_pipeline_version(
                package, version, pipeline_id=pipeline_id, description=description
            )
            return str(uploaded.pipeline_version_id)

    def _pipeline(self, client: kfp.Client, name: str) -> str:
        """The id of the pipeline of a name in this namespace; empty if there is none.

        KFP's own `get_pipeline_id` asks without a namespace, and so finds shared pipelines alone.
        """
        equal = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        predicate = json.dumps({"predicates": [equal]})
        pipelines = client.list_pipelines(namespace=self.namespace or None, filter=predicate).pipelines
        return str(pipelines[0].pipeline_id) if pipelines else ""

    def version(self) -> str:
        """What the server calls its version; empty if it does not tell.

        Raises:
            ClusterError: the API cannot be reached or refuses.
        """
        with self._client() as client:
            return _version(client)

    def task_states(self, run: str) -> dict[str, str]:
        """How each task of a run ended, by its title.

        Raises:
            ClusterError: the API cannot be reached or refuses.
        """
        with self._client() as client:
            details = client.get_run(run).run_details
            tasks = (details.task_details if details else None) or []
            return {str(task.display_name): str(task.state) for task in tasks}

    def _refuse_older(self, client: kfp.Client, pipeline: dsl.base_component.BaseComponent) -> None:
        """Refuse a server that would start the run, and let it fail at what it does not know.

        A server that does not tell its version is taken: newer ones have no first API, and a build may have no number.
        """
        loops = any(
            task.HasField("parameter_iterator")
            for component in pipeline.pipeline_spec.components.values()
            for task in component.dag.tasks.values()
        )
        needed, because = _NEEDED["loops" if loops else "all"]
        version = _version(client)
        if (_number(version) or needed) < needed:
            least = "{}.{}".format(*needed)
            raise ClusterError(
                f"{self.host} is Kubeflow Pipelines {version}, and this document needs {least} or newer, for {because}"
                "; upgrade it"
            )

    @contextlib.contextmanager
    def _client(self, pipeline: dsl.base_component.BaseComponent | None = None) -> Iterator[kfp.Client]:
        """KFP's client, quiet, and its failures in one line; of a server that knows what the pipeline uses, if any."""
        credentials = None
        if os.environ.get(_TOKEN):
            from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

            credentials = ServiceAccountTokenVolumeCredentials()
        warnings.simplefilter("ignore", FutureWarning)  # KFP's client warns of servers older than 2.0 in any case
        logging.disable(logging.ERROR)  # and logs a traceback for each try to reach the server
        try:
            client = kfp.Client(host=self.host, credentials=credentials)
            if pipeline:
                self._refuse_older(client, pipeline)
            yield client
        except (TimeoutError, kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(
                f"{self.host}: the Kubeflow Pipelines API did not do as asked ({reason}); check --host and the login"
            ) from error
        finally:
            logging.disable(logging.NOTSET)


def _version(client: kfp.Client) -> str:
    """What the first API's health check tells, which KFP's client does not ask; empty without."""
    try:
        answer = client._healthz_api.api_client.call_api(
            "/apis/v1beta1/healthz",
            "GET",
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
        )
    except kfp_server_api.ApiException as error:
        if error.status == 404:
            return ""
        raise
    return str(answer.get("tag_name", ""))


def _number(version: str) -> tuple[int, int] | None:
    """Major and minor number of a version's name; None of one that has none, such as master."""
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


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
