"""`contrique serve`: a page to drop pictures on, and the same answers as JSON.

One model, one thread that scores, and a few processes that decode (`decoder`): requests wait their turn, picture by
picture, so that memory stays that of a few pictures and a request of 64 does not keep out one of 1. Whatever a client
does wrong, or makes too large or too slow, ends in one JSON object with one line. Nothing that a client sends is ever
taken for a path.
"""

import asyncio
import base64
import ipaddress
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from contrique import __version__, images, pages
from contrique.config import ServingLimits
from contrique.errors import ContriqueError
from contrique.regressor.head import DIRECTION, RANGE
from contrique.scoring.explain import explain, explanation_as_dict, overlay
from contrique.scoring.results import Failure, Score, flatten
from contrique.scoring.scorer import Scorer
from contrique.serving.connections import limit_connections
from contrique.serving.decoder import Malformed, Upload
from contrique.serving.guard import AsciiResponse, Guard, answer_refusal, describe_policy, list_hosts
from contrique.serving.request import Turns
from contrique.serving.schema import (
    Explained,
    Health,
    Picture,
    Pictures,
    Predictions,
    Refused,
    Row,
    describe_body,
    describe_requests,
)

_BACKLOG: Final = 32  # connections that wait; asyncio accepts as many in one go, before any can be closed
_GRACE: Final = 5  # seconds that requests under way are given when the server is stopped
Result = TypeVar("Result")


class ServiceError(ContriqueError):
    """The address cannot be listened on."""


class Requests:
    """Carries the requests of the event loop to the threads that wait for decoders and for the model.

    Attributes:
        waiting: pictures that somebody waits for, the one that is computed included.
    """

    def __init__(self, limits: ServingLimits) -> None:
        self.waiting = 0
        self.turns = Turns(limits)
        self._pool = ThreadPoolExecutor(limits.max_requests, "request")

    async def read(self, request: Request, form: str) -> list[Upload]:
        """The images of a request.

        Raises:
            HTTPException: it is not JSON, or not of the form.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(422, "body: no JSON; see /openapi.json, and send application/json")
        body = await request.body()
        try:
            return await self._run(lambda _: self.turns.read_request(body, form))
        except Malformed as error:
            raise HTTPException(422, str(error)) from None
        except images.BadImage as error:
            raise HTTPException(413, str(error)) from None

    async def answer(
        self, upload: Upload, index: int, work: Callable[[images.Picture, str], Result]
    ) -> Result | Failure:
        """As `Turns.answer`. A request that was given up while it waited leaves nothing behind.

        A picture that is being computed cannot be stopped: the turn is over when it is done, whoever still wants it.
        """
        if upload.error:
            return Failure(f"image {index}", f"image {index}: {upload.error}")
        self.waiting += 1
        try:
            return await self._run(lambda is_wanted: self.turns.answer(upload.data, index, work, is_wanted))
        finally:
            self.waiting -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.turns.close()

    async def _run(self, call: Callable[[Callable[[], bool]], Result]) -> Result:
        unwanted = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call, lambda: not unwanted.is_set())
        except asyncio.CancelledError:
            unwanted.set()
            raise


def application(scorer: Scorer, limits: ServingLimits, host: str = "127.0.0.1") -> FastAPI:
    """The page and its endpoints: `/`, `/score`, `/explain`, `/health`, `/openapi.json`.

    Args:
        scorer: the model; used by one thread at a time.
        limits: of images and requests.
        host: that it will listen on. Requests that name another host are refused, lest a page of a stranger, whose
            name was made to point here, reads the answers (DNS rebinding).
    Returns:
        an ASGI application.
    """
    requests = Requests(limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        requests.turns.start()
        yield
        requests.close()

    app = FastAPI(
        title="CONTRIQUE",
        summary="No-reference image quality, 0 to 100, higher is better",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=AsciiResponse,
        responses={status: {"model": Refused} for status in (400, 408, 413, 422, 500, 503, 504)},
    )
    page = _page(scorer, limits)
    app.add_middleware(Guard, limits=limits, hosts=list_hosts(host), policy=describe_policy(page))
    app.add_exception_handler(AnyHTTPException, answer_refusal)
    app.openapi = partial(_describe, app)  # type: ignore[method-assign]

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show() -> str:
        return page

    @app.get("/health")
    async def health() -> Health:
        return Health(
            status="ok", model=scorer.version, labels=scorer.labels, version=__version__, waiting=requests.waiting
        )

    @app.post("/score", openapi_extra=describe_body(Pictures))
    async def score(request: Request) -> Predictions:
        """Score pictures. A bad one has an error and fails no other."""
        rows = []
        for i, upload in enumerate(await requests.read(request, Pictures.__name__)):
            if await request.is_disconnected():
                raise HTTPException(499, "the client is gone")  # as nginx has it; nobody reads this
            rows.append(_row(upload, await requests.answer(upload, i, scorer.judge_pixels)))
        return Predictions(predictions=rows)

    @app.post("/explain", openapi_extra=describe_body(Picture))
    async def explain_score(request: Request) -> Explained:
        """Score a picture, draw where its quality is lost, and name the likeliest distortion."""
        (upload,) = await requests.read(request, Picture.__name__)
        result = await requests.answer(upload, 0, partial(_explain, scorer, limits))
        if isinstance(result, Failure):
            return Explained(**_row(upload, result).model_dump(), heat=None, overlay=None, suspects=None)
        return Explained(**_row(upload, result[0]).model_dump(), **result[1])

    return app


def _explain(scorer: Scorer, limits: ServingLimits, picture: images.Picture, name: str) -> tuple[Score, dict[str, Any]]:
    explanation = explain(scorer, picture, name)
    image = images.encode_png(overlay(picture, explanation.heat, max_side=limits.heat_side))
    values = explanation_as_dict(explanation)
    encoded = base64.b64encode(image).decode()
    return explanation.score, {"heat": values["heat"], "overlay": encoded, "suspects": values["suspects"]}


def _describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with what the endpoints take: they do not tell FastAPI, which would read it in this process."""
    schema = get_openapi(title=app.title, summary=app.summary, version=app.version, routes=app.routes)
    schema["components"]["schemas"] |= describe_requests()
    return schema


def _row(upload: Upload, item: Score | Failure) -> Row:
    values = flatten(item)
    del values["path"]  # the place in the request, by which errors call it
    return Row(name=upload.name, **values)


def _page(scorer: Scorer, limits: ServingLimits) -> str:
    return pages.render(
        "service.html",
        {"model": scorer.version, "labels": scorer.labels, "limits": limits, "range": RANGE, "direction": DIRECTION},
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections, which wait until the server runs.

    Args:
        host: an address or name of this machine.
        port: 0 for a free one.
    Raises:
        ServiceError: taken, not allowed, or no address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((address[0], port, *address[2:]), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServiceError(f"--host {host} --port {port}: cannot listen there ({reason}); give others") from error


def create_server(app: FastAPI, limits: ServingLimits) -> uvicorn.Server:
    """What runs an application on sockets, within the limits of connections."""
    config = uvicorn.Config(
        app,
        http=limit_connections(limits),
        backlog=_BACKLOG,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def server(scorer: Scorer, limits: ServingLimits, host: str) -> uvicorn.Server:
    """What runs `application` on sockets. Arguments as there."""
    return create_server(application(scorer, limits, host), limits)


def locate(listener: socket.socket, host: str) -> str:
    """The address of the page; with a warning if others can reach it.

    Args:
        listener: of `listen`.
        host: as `application`.
    """
    address, port = listener.getsockname()[:2]
    if not ipaddress.ip_address(address).is_loopback:
        print(
            f"contrique: warning: --host {host} lets everybody who can reach this machine use the server: "
            "there is no password and no encryption",
            file=sys.stderr,
        )
    literal = f"[{address}]" if ":" in address else address
    return f"http://{literal}:{port}/"


def serve(scorer: Scorer, listener: socket.socket, limits: ServingLimits, host: str) -> None:
    """Answer until the process is told to stop (Ctrl+C, SIGTERM).

    Args:
        scorer: the model.
        listener: of `listen`; closed at the end.
        limits: of images and requests.
        host: as `application`.
    """
    model = f"model {scorer.version}" if scorer.version else "an unregistered model"
    print(f"{locate(listener, host)} scores pictures by {model}; Ctrl+C stops it", flush=True)
    with suppress(KeyboardInterrupt):  # how a person ends it
        server(scorer, limits, host).run(sockets=[listener])
