"""`contrique serve`: a page to drop pictures on, and the same answers as JSON.

One process, one model, one thread that scores: requests wait their turn, picture by picture, so that memory stays that
of one picture and a request of 64 does not keep out one of 1. Whatever a client does wrong, or makes too large or too
slow, ends in one JSON object with one line. Nothing that a client sends is ever taken for a path.
"""

import asyncio
import base64
import hashlib
import ipaddress
import logging
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contrique import __version__, images, pages
from contrique.config import ServingConfig
from contrique.errors import ContriqueError
from contrique.explain import as_dict, explain, overlay
from contrique.intake import answer
from contrique.scorer import DIRECTION, RANGE, Failure, Score, Scorer, flat

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")  # names by which a browser on this machine asks
MAX_ROWS: Final = 1000  # of one request: each costs memory before the limit of images is looked at
MAX_PARTS: Final = 100_000  # of the JSON of one request: parsed, an empty list takes twenty times its bytes
_GRACE: Final = 5  # seconds that requests under way are given when the server is stopped

Result = TypeVar("Result")
_log = logging.getLogger("contrique.serving")


class ServiceError(ContriqueError):
    """The address cannot be listened on."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Picture(_Model):
    """An image file."""

    image: str = Field(description="the file's bytes in base64, of any format in docs/inputs.md")
    name: str = Field("", max_length=1000, description="comes back with the answer; is used for nothing else")


class Pictures(_Model):
    """A request for scores."""

    images: list[Picture] = Field(
        min_length=1, max_length=MAX_ROWS, description="over the limit of images, those at the end get an error each"
    )


class Row(_Model):
    """One picture's score with its contract, or the reason why it has none; what is missing is null."""

    name: str = Field(description="as given")
    score: float | None = Field(description="quality in [low, high], higher is better")
    raw: float | None = Field(description="the regressor's output, on the scale of its training labels")
    low: float | None = Field(description="lowest possible score")
    high: float | None = Field(description="highest possible score")
    direction: str | None = Field(description="which end is good")
    model: str | None = Field(description="version in the registry")
    labels: str | None = Field(description="what the model learned from: human, or weak")
    error: str | None = Field(description="why there is no score, and the remedy; null if there is one")
    interval_low: float | None = Field(description="where a judgement of the picture lies nine times out of ten: from")
    interval_high: float | None = Field(description="to; both null for a model that was fitted without")
    distance: float | None = Field(description="how unlike the training pictures; above 1 is farther than 99 % of them")
    warning: str | None = Field(description="in words that distance is above 1; empty if it is not")


class Predictions(_Model):
    """A row for each picture, in order."""

    predictions: list[Row]


class Likely(_Model):
    """A distortion that the picture may have."""

    distortion: str = Field(description="one of the 25, or pristine")
    level: int = Field(ge=0, le=5, description="1 to 5; 0 for pristine")
    probability: float = Field(ge=0, le=1, description="those of all distortions sum to 1")


class Explained(Row):
    """A row, where the picture's quality is lost, and what it looks like; null if it has no score."""

    heat: list[list[float]] | None = Field(description="score of each patch of 32 x 32 pixels, row by row, 0 to 100")
    overlay: str | None = Field(description="PNG in base64: the heat map over the picture, red is low, blue is high")
    suspects: list[Likely] | None = Field(description="likeliest first; null for a model that cannot name distortions")


class Refused(_Model):
    """Why a whole request has no answer."""

    error: str = Field(description="one line")


class Health(_Model):
    """That the server answers, and by which model."""

    status: str
    model: str = Field(description="version in the registry; empty for a model that is not registered")
    labels: str = Field(description="human or weak")
    version: str = Field(description="of this program")
    waiting: int = Field(description="pictures that are computed or wait their turn")


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
    turns = _Turns()

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
    app.add_middleware(_Guard, limits=limits, hosts=_hosts(host), policy=_policy(page))
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)

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
            plain = as_dict(found)
            overlaid = base64.b64encode(drawn).decode()
            return found.score, {"heat": plain["heat"], "overlay": overlaid, "suspects": plain["suspects"]}

        told = await turns.take(partial(answer, asked.image, 0, limits, work))
        item, more = (told, dict.fromkeys(("heat", "overlay", "suspects"))) if isinstance(told, Failure) else told
        return Explained(**_row(asked, item).model_dump(), **more)

    return app


def _row(asked: Picture, item: Score | Failure) -> Row:
    values = flat(item)
    del values["path"]  # the place in the request, by which errors call it
    return Row(name=asked.name, **values)


class _Turns:
    """One thread that works; whoever waits for it does so outside of it, first come, first served.

    Attributes:
        waiting: pictures that somebody waits for, the one that is computed included.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._pool = ThreadPoolExecutor(1, "score")
        self._turn = asyncio.Lock()

    async def take(self, work: Callable[[], Result]) -> Result:
        """What `work` gives. A request that was given up while it waited leaves nothing behind.

        A picture that is being computed cannot be stopped: the turn is over when it is done, whoever still wants it.
        """
        self.waiting += 1
        try:
            await self._turn.acquire()
            done = asyncio.get_running_loop().run_in_executor(self._pool, work)
            done.add_done_callback(lambda _: self._turn.release())
            return await asyncio.shield(done)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Guard:
    """What is the same for every request: who may ask, how much, for how long, and what a browser may do with it."""

    def __init__(self, app: ASGIApp, limits: ServingConfig, hosts: "_Hosts", policy: str) -> None:
        self._app = app
        self._limits = limits
        self._hosts = hosts
        self._headers = [
            (name.encode(), value.encode())
            for name, value in {
                "content-security-policy": policy,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
                "cross-origin-resource-policy": "same-origin",
                "cache-control": "no-store",
            }.items()
        ]
        self._under_way = 0  # requests with a body
        self._held = 0  # bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = whole = False
        taken = parts = 0

        async def heard() -> Message:
            nonlocal whole, taken, parts
            message = await receive()
            more = message.get("body", b"")
            taken += len(more)
            self._held += len(more)
            parts += sum(map(more.count, (b"[", b"{", b",")))  # none of which is in base64
            if taken > self._limits.max_request_bytes:
                raise _too_large(self._limits)
            if parts > MAX_PARTS:
                raise HTTPException(413, "the request has too many parts; send fewer pictures in one")
            if self._held > self._limits.max_held_bytes:
                raise _busy()
            whole = whole or not message.get("more_body", False)
            return message

        async def said(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        async def tell(status: int, line: str) -> None:
            if started:  # and cannot be taken back: the server cuts it off
                _log.warning("an answer was broken off: %s", line)
            else:
                await _told(status, line)(scope, heard, said)

        body = scope["method"] not in ("GET", "HEAD")
        self._under_way += body
        try:
            async with asyncio.timeout(self._limits.seconds):
                self._admit(scope, body)
                await self._app(scope, heard, said)
        except AnyHTTPException as refusal:  # of _admit; the others never get here
            await _refused(None, refusal)(scope, heard, said)
        except TimeoutError:
            limit = f"{self._limits.seconds:g} s"
            if whole or not body:
                await tell(504, f"not done within {limit}; try again, with fewer or smaller pictures")
            else:
                await tell(408, f"the request did not arrive within {limit}; send it smaller")
        except Exception:  # told in the log, whole, and to the client without its stack trace
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await tell(500, "an error of the server, told in its log")
        finally:
            self._under_way -= body
            self._held -= taken

    def _admit(self, scope: Scope, body: bool) -> None:
        headers = Headers(scope=scope)
        if not self._hosts.know(headers.get("host", "")):
            raise HTTPException(400, "unknown host; ask by the name that the server was given as --host")
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limits.max_request_bytes:
            raise _too_large(self._limits)
        if body and self._under_way > self._limits.max_requests:
            raise _busy()


class _Hosts:
    """The names by which this server may be asked."""

    def __init__(self, names: set[str], any_address: bool) -> None:
        self._names = names
        self._any_address = any_address

    def know(self, header: str) -> bool:
        name = re.sub(r":\d*$", "", header).lower()
        return name in self._names or (self._any_address and _address(name) is not None)


def _hosts(host: str) -> _Hosts:
    """Loopback and `host`; of a server that listens everywhere, this machine's name and any address as well.

    No name can be made to point here by asking for an address, so those are safe.
    """
    found = _address(host)
    everywhere = found is not None and found.is_unspecified
    names = {*LOOPBACK, host.lower(), f"[{host.lower()}]"} | ({socket.gethostname().lower()} if everywhere else set())
    return _Hosts(names, everywhere)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]"))
    return None


def _too_large(limits: ServingConfig) -> HTTPException:
    return HTTPException(413, f"the request is over {limits.max_request_bytes / 1e6:g} MB; send fewer pictures in one")


def _busy() -> HTTPException:
    return HTTPException(503, "too many requests at once; try again in a second", {"Retry-After": "1"})


def _told(status: int, line: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(Refused(error=line).model_dump(), status, headers)


def _refused(_: Request | None, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return _told(error.status_code, str(error.detail), error.headers)


def _malformed(_: Request, error: Exception) -> JSONResponse:
    """The first fault alone, and where; what was sent is not sent back."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = ".".join(ascii(str(part))[1:-1][:100] for part in fault["loc"])  # a key may be anything
    return _told(422, f"{where}: {fault['msg']}; see /openapi.json, and send application/json")


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
