"""An API server that answers as Kubeflow Pipelines' does, on a port of this machine: for the client of the cluster.

It holds each request against the API's own models, down to the leaves, and keeps namespaces apart: with `multi_user` a
list is of one namespace, and one that names none is refused for experiments and shows only shared pipelines. Read in
KFP 2.17: `apiserver/main.go`, `server/{pipeline,experiment,pipeline_upload}_server.go`.
"""

import email
import http.server
import json
import threading
import urllib.parse
from typing import Any

import kfp_server_api

RUN = "11111111-2222-3333-4444-555555555555"
MODELS = {
    "experiments": kfp_server_api.V2beta1Experiment,
    "runs": kfp_server_api.V2beta1Run,
    "recurringruns": kfp_server_api.V2beta1RecurringRun,
}
IDS = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}


class Server(http.server.ThreadingHTTPServer):
    """The server; a context manager, that serves inside its block.

    Args:
        version: as its health check tells it; empty for one that no longer has the first API, which told it.
        multi_user: with profiles.

    Attributes:
        address: for clients.
        requests: the last request of each kind.
        objects: what was made, by kind.
        states: of a run, one for each time that it is asked for; the last one stays.
        tasks: how those of a run ended, by title.
        tokens: that requests brought.
    """

    def __init__(self, version: str = "2.17.0", *, multi_user: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.version, self.multi_user = version, multi_user
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.requests: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (*MODELS, "pipelines", "versions")}
        self.states: list[str] = []
        self.state = "PENDING"
        self.tasks: dict[str, str] = {}
        self.tokens: set[str | None] = set()

    def __enter__(self) -> "Server":
        self._thread = threading.Thread(target=self.serve_forever, args=[0.02], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Refusal(Exception):
    """An answer that is no success.

    Args:
        status: of HTTP.
        message: what the server says.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        self.respond(self.answer_get)

    def do_POST(self) -> None:
        self.respond(self.create)

    def respond(self, action: Any) -> None:
        path, _, query = self.path.partition("?")
        try:
            status, answer = 200, action(path, dict(urllib.parse.parse_qsl(query)))
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer_get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        server = self.server
        if path == "/apis/v1beta1/healthz" and server.version:
            return {"commit_sha": "0" * 40, "tag_name": server.version, "multi_user": server.multi_user}
        kind = path.removeprefix("/apis/v2beta1/")
        if kind == "healthz":
            return {"multi_user": server.multi_user, "pipeline_store": "database"}
        if kind in ("experiments", "pipelines"):
            return {
                kind: [entry for entry in self.of_namespace(kind, query) if matches(entry, query.get("filter", ""))]
            }
        if kind == f"runs/{RUN}":
            if server.states:
                server.state = server.states.pop(0)
            tasks = [{"display_name": title, "state": state} for title, state in server.tasks.items()]
            return {"run_id": RUN, "state": server.state, "run_details": {"task_details": tasks}}
        raise Refusal(404, f"unexpected GET {self.path}")

    def of_namespace(self, kind: str, query: dict[str, str]) -> list[dict[str, Any]]:
        namespace = query.get("namespace", "")
        if not self.server.multi_user:
            if kind == "experiments" and namespace:
                raise Refusal(400, "In single-user mode, ListExperiment cannot filter by namespace")
            return self.server.objects[kind]
        if kind == "experiments" and not namespace:
            raise Refusal(400, "A valid namespace is required to list experiments in multi-user mode")
        return [entry for entry in self.server.objects[kind] if entry.get("namespace", "") == namespace]

    def create(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        kind = path.removeprefix("/apis/v2beta1/")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if kind.startswith("pipelines/upload"):
            return self.upload(kind, query, data)
        body = json.loads(data)
        try:
            conform(body, MODELS[kind])
        except (ValueError, TypeError) as error:
            raise Refusal(400, str(error)) from error
        if kind == "experiments":
            self.refuse_duplicate(kind, body)
            if bool(body.get("namespace")) != self.server.multi_user:
                raise Refusal(400, "an experiment has a namespace in multi-user mode, and there alone")
        elif body["experiment_id"] not in [entry["experiment_id"] for entry in self.server.objects["experiments"]]:
            raise Refusal(404, f"experiment {body['experiment_id']} not found")
        number = RUN if kind == "runs" else f"{kind[0]}-{len(self.server.objects[kind]) + 1}"
        self.server.requests[kind] = body
        self.server.objects[kind].append(body | {IDS[kind]: number})
        return self.server.objects[kind][-1]

    def upload(self, kind: str, query: dict[str, str], data: bytes) -> dict[str, Any]:
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        (part,) = email.message_from_bytes(header + data).get_payload()
        document = part.get_payload(decode=True).decode()
        pipelines = self.server.objects["pipelines"]
        if kind == "pipelines/upload":
            namespace = query.get("namespace", "") if self.server.multi_user else ""
            new = {"display_name": query["name"], "namespace": namespace}
            self.refuse_duplicate("pipelines", new)
            pipelines.append(new | {"pipeline_id": f"p-{len(pipelines) + 1}", "description": query["description"]})
            return pipelines[-1]
        if query["pipelineid"] not in [entry["pipeline_id"] for entry in pipelines]:
            raise Refusal(404, f"pipeline {query['pipelineid']} not found")
        version = {"display_name": query["name"], "pipeline_id": query["pipelineid"]}
        self.refuse_duplicate("versions", version)
        number = f"v-{len(self.server.objects['versions']) + 1}"
        rest = {"pipeline_version_id": number, "description": query.get("description", ""), "document": document}
        self.server.objects["versions"].append(version | rest)
        return version | {"pipeline_version_id": number}

    def refuse_duplicate(self, kind: str, new: dict[str, Any]) -> None:
        """Refuse what is there already: the same name in the same namespace, or of the same pipeline."""
        for entry in self.server.objects[kind]:
            if all(
                entry.get(key, "") == new.get(key, "")
                for key in ("display_name", "namespace", *(["pipeline_id"] if kind == "versions" else []))
            ):
                raise Refusal(409, f"Already exist error: the name {new['display_name']} already exists")

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def matches(entry: dict[str, Any], predicate_filter: str) -> bool:
    """Whether one thing passes a filter of the API's: equal in every predicate."""
    predicates = json.loads(predicate_filter)["predicates"] if predicate_filter else []
    for predicate in predicates:
        if predicate["operation"] not in ("EQUALS", 1):
            raise Refusal(400, f"unexpected operation {predicate['operation']}")
    return all(entry.get(predicate["key"]) == predicate["stringValue"] for predicate in predicates)


def conform(body: dict[str, Any], model: type) -> None:
    """Raise unless every field is one of the model's, and every value one that the model takes, down to the leaves."""
    unknown = set(body) - set(model.attribute_map.values())
    if unknown:
        raise ValueError(f"{model.__name__} has no fields {unknown}")
    for name, json_name in model.attribute_map.items():
        kind = getattr(kfp_server_api, model.openapi_types[name], None)
        if json_name in body and hasattr(kind, "openapi_types") and kind.openapi_types:
            conform(body[json_name], kind)
        elif json_name in body and hasattr(kind, "allowable_values") and body[json_name] not in kind.allowable_values:
            raise ValueError(f"{json_name}: {body[json_name]} is none of {kind.allowable_values}")
