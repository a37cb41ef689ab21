"""What is the same for every request: who may ask, how much, and for how long."""

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contrique.config import ServingConfig
from contrique.serving.schema import Refused

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")  # names by which a browser on this machine asks
MAX_PARTS: Final = 100_000  # of the JSON of one request: parsed, an empty list takes twenty times its bytes
Result = TypeVar("Result")
_log = logging.getLogger("contrique.serving")


class Turns:
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


class Guard:
    """What is the same for every request: who may ask, how much, for how long, and what a browser may do with it."""

    def __init__(self, app: ASGIApp, limits: ServingConfig, hosts: "Hosts", policy: str) -> None:
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
                raise _refuse_large(self._limits)
            if parts > MAX_PARTS:
                raise HTTPException(413, "the request has too many parts; send fewer pictures in one")
            if self._held > self._limits.max_held_bytes:
                raise _refuse_busy()
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
                await _answer(status, line)(scope, heard, said)

        body = scope["method"] not in ("GET", "HEAD")
        self._under_way += body
        try:
            async with asyncio.timeout(self._limits.seconds):
                self._admit(scope, body)
                await self._app(scope, heard, said)
        except AnyHTTPException as refusal:  # of _admit; the others never get here
            await answer_refusal(None, refusal)(scope, heard, said)
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
            raise _refuse_large(self._limits)
        if body and self._under_way > self._limits.max_requests:
            raise _refuse_busy()


class Hosts:
    """The names by which this server may be asked."""

    def __init__(self, names: set[str], any_address: bool) -> None:
        self._names = names
        self._any_address = any_address

    def know(self, header: str) -> bool:
        name = re.sub(r":\d*$", "", header).lower()
        return name in self._names or (self._any_address and _parse_address(name) is not None)


def list_hosts(host: str) -> Hosts:
    """Loopback and `host`; of a server that listens everywhere, this machine's name and any address as well.

    No name can be made to point here by asking for an address, so those are safe.
    """
    found = _parse_address(host)
    everywhere = found is not None and found.is_unspecified
    names = {*LOOPBACK, host.lower(), f"[{host.lower()}]"} | ({socket.gethostname().lower()} if everywhere else set())
    return Hosts(names, everywhere)


def _parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]"))
    return None


def _refuse_large(limits: ServingConfig) -> HTTPException:
    return HTTPException(413, f"the request is over {limits.max_request_bytes / 1e6:g} MB; send fewer pictures in one")


def _refuse_busy() -> HTTPException:
    return HTTPException(503, "too many requests at once; try again in a second", {"Retry-After": "1"})


def _answer(status: int, line: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(Refused(error=line).model_dump(), status, headers)


def answer_refusal(_: Request | None, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return _answer(error.status_code, str(error.detail), error.headers)


def answer_malformed(_: Request, error: Exception) -> JSONResponse:
    """The first fault alone, and where; what was sent is not sent back."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = ".".join(ascii(str(part))[1:-1][:100] for part in fault["loc"])  # a key may be anything
    return _answer(422, f"{where}: {fault['msg']}; see /openapi.json, and send application/json")
