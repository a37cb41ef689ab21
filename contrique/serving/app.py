"""`contrique serve`: a page to drop pictures on, and the same answers as JSON.

One process, one model, one thread that scores: requests wait their turn, picture by picture, so that memory stays that
of one picture and a request of 64 does not keep out one of 1. Whatever a client does wrong, or makes too large or too
slow, ends in one JSON object with one line. Nothing that a client sends is ever taken for a path.
"""

import base64
import hashlib
import ipaddress
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from contrique import __version__, images, pages
from contrique.config import ServingConfig
from contrique.errors import ContriqueError
from contrique.regressor.head import DIRECTION, RANGE
from contrique.scoring.explain import explain, explanation_as_dict, overlay
from contrique.scoring.results import Failure, Score, flatten
from contrique.scoring.scorer import Scorer
from contrique.serving.guard import Guard, Turns, answer_malformed, answer_refusal, list_hosts
from contrique.serving.request import answer
from contrique.serving.schema import Explained, Health, Picture, Pictures, Predictions, Refused, Row

_GRACE: Final = 5  # seconds that requests under way are given when the server is stopped


class ServiceError(ContriqueError):
    """The address cannot be listened on."""


def application(scorer: Scorer, limits: ServingConfig, host: str = "127.0.0.1") -> FastAPI:
    """The page and its endpoints: `/`, `/score`, `/explain`, `/health`, `/openapi.json`.

    Args:
        scorer: the model; used by one thread at a time.
        limits: of images and requests.
        host: that it will listen on. Requests that name another host are refused, lest a page of a stranger, whose
            name was made to point here, reads the answers (DNS rebinding).
    Returns:
        an ASGI application.
    """
    turns = Turns()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        turns.close()

    app = FastAPI(
        title="CONTRIQUE",
        summary="No-reference image quality, 0 to 100, higher is better",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": Refused} for status in (400, 408, 413, 422, 500, 503, 504)},
    )
    page = _page(scorer, limits)
    app.add_middleware(Guard, limits=limits, hosts=list_hosts(host), policy=_policy(page))
    app.add_exception_handler(AnyHTTPException, answer_refusal)
    app.add_exception_handler(RequestValidationError, answer_malformed)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show() -> str:
        return page

    @app.get("/health")
    async def health() -> Health:
        return Health(
            status="ok", model=scorer.version, labels=scorer.labels, version=__version__, waiting=turns.waiting
        )

    @app.post("/score")
    async def score(asked: Pictures, request: Request) -> Predictions:
        """Score pictures. A bad one has an error and fails no other."""
        rows = []

        def judge(data: bytes, name: str) -> Score | Failure:
            return scorer.judge(data, name, limits.max_pixels)

        for i, item in enumerate(asked.images):
            if await request.is_disconnected():
                raise HTTPException(499, "the client is gone")  # as nginx has it; nobody reads this
            rows.append(_row(item, await turns.take(partial(answer, item.image, i, limits, judge))))
        return Predictions(predictions=rows)

    @app.post("/explain")
    async def explained(asked: Picture) -> Explained:
        """Score a picture, draw where its quality is lost, and name the likeliest distortion."""

        def work(data: bytes, name: str) -> tuple[Score, dict[str, Any]]:
            picture = images.decode(data, name, limits.max_pixels).pixels
            found = explain(scorer, picture, name)
            drawn = images.encode_png(overlay(picture, found.heat, max_side=limits.heat_side))
            plain = explanation_as_dict(found)
            overlaid = base64.b64encode(drawn).decode()
            return found.score, {"heat": plain["heat"], "overlay": overlaid, "suspects": plain["suspects"]}

        told = await turns.take(partial(answer, asked.image, 0, limits, work))
        item, more = (told, dict.fromkeys(("heat", "overlay", "suspects"))) if isinstance(told, Failure) else told
        return Explained(**_row(asked, item).model_dump(), **more)

    return app


def _row(asked: Picture, item: Score | Failure) -> Row:
    values = flatten(item)
    del values["path"]  # the place in the request, by which errors call it
    return Row(name=asked.name, **values)


def _page(scorer: Scorer, limits: ServingConfig) -> str:
    return pages.render(
        "service.html",
        {"model": scorer.version, "labels": scorer.labels, "limits": limits, "range": RANGE, "direction": DIRECTION},
    )


def _policy(page: str) -> str:
    """What the page may do: run and look as it does, show pictures of its own, and ask this server."""
    allowed = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in re.findall(r"<(style|script)>(.*?)</\1>", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
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


def server(scorer: Scorer, limits: ServingConfig, host: str) -> uvicorn.Server:
    """What runs `application` on sockets. Arguments as there."""
    config = uvicorn.Config(
        application(scorer, limits, host),
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def serve(scorer: Scorer, listener: socket.socket, limits: ServingConfig, host: str) -> None:
    """Answer until the process is told to stop (Ctrl+C, SIGTERM).

    Args:
        scorer: the model.
        listener: of `listen`; closed at the end.
        limits: of images and requests.
        host: as `application`.
    """
    address, port = listener.getsockname()[:2]
    model = f"model {scorer.version}" if scorer.version else "an unregistered model"
    if not ipaddress.ip_address(address).is_loopback:
        print(
            f"contrique: warning: --host {host} lets everybody who can reach this machine use the server: "
            "there is no password and no encryption",
            file=sys.stderr,
        )
    shown = f"[{address}]" if ":" in address else address
    print(f"http://{shown}:{port}/ scores pictures by {model}; Ctrl+C stops it", flush=True)
    with suppress(KeyboardInterrupt):  # how a person ends it
        server(scorer, limits, host).run(sockets=[listener])
