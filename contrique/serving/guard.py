"""What is the same for every request: who may ask, how much, and for how long."""

import asyncio
import base64
import hashlib
import ipaddress
import json
import logging
import re
import socket
from contextlib import suppress
from typing import Any, Final

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contrique.config import ServingLimits
from contrique.serving.schema import Refused
from contrique.text import escape_control

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")  # names by which a browser on this machine asks
MAX_PARTS: Final = 100_000  # of the JSON of one request: parsed, an empty list takes twenty times its bytes
_log = logging.getLogger("contrique.serving")


class AsciiResponse(JSONResponse):
    """JSON that a terminal shows and never obeys: also C1 controls and marks that reorder text are escaped."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class _Arrival:
    """A request, whose body may be on its way.

    Attributes:
        size: bytes of the body that have come.
        deadline: until which all of it must be done.
        is_whole: whether the body has come.
        is_evicted: whether it had to give way to others.
    """

    def __init__(self, deadline: asyncio.Timeout) -> None:
        self.size = 0
        self.deadline = deadline
        self.is_whole = self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True
        self.deadline.reschedule(asyncio.get_running_loop().time())


class Guard:
    """What is the same for every request: who may ask, how much, for how long, and what a browser may do with it."""

    def __init__(self, app: ASGIApp, limits: ServingLimits, hosts: "Hosts", policy: str) -> None:
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
        self._arrivals: set[_Arrival] = set()  # every request with a body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        parts = 0
        has_body = scope["method"] not in ("GET", "HEAD")

        async def receive_counted() -> Message:
            nonlocal parts
            message = await receive()
            content = message.get("body", b"")
            arrival.size += len(content)
            parts += sum(map(content.count, (b"[", b"{", b",")))  # none of which is in base64
            if arrival.size > self._limits.max_request_bytes:
                raise _refuse_large(self._limits)
            if parts > MAX_PARTS:
                raise HTTPException(413, "the request has too many parts; send fewer pictures in one")
            if content and self._count_held_bytes() > self._limits.max_held_bytes:
                self._evict_largest(arrival)
            if has_body and not arrival.is_whole and not message.get("more_body", False):
                if sum(each.is_whole for each in self._arrivals) >= self._limits.max_requests:
                    raise _refuse_busy()
                arrival.is_whole = True
            return message

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        async def respond(status: int, line: str) -> None:
            if started:  # and cannot be taken back: the server cuts it off
                _log.warning("an answer was broken off: %s", line)
            else:
                await _answer(status, line)(scope, receive_counted, send_guarded)

        deadline = asyncio.timeout(self._limits.seconds)
        arrival = _Arrival(deadline)
        try:
            async with deadline:
                self._admit(scope)
                if has_body:
                    self._arrivals.add(arrival)
                await self._app(scope, receive_counted, send_guarded)
        except AnyHTTPException as refusal:  # of _admit; the others never get here
            await answer_refusal(None, refusal)(scope, receive_counted, send_guarded)
        except TimeoutError:
            limit = f"{self._limits.seconds:g} s"
            if arrival.is_evicted:
                await respond(408, "the request gave way to others while it arrived; try again")
            elif has_body and not arrival.is_whole:
                await respond(408, f"the request did not arrive within {limit}; send it smaller")
            else:
                await respond(504, f"not done within {limit}; try again, with fewer or smaller pictures")
        except ClientDisconnect:  # nobody is there to be told
            return
        except Exception:  # in the log, whole, and to the client without its stack trace
            _log.exception("%s %s failed", scope["method"], escape_control(scope["path"]))
            await respond(500, "an error of the server; see its log")
        finally:
            self._arrivals.discard(arrival)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self._hosts.know(headers.get("host", "")):
            raise HTTPException(400, "unknown host; ask by the name that the server was given as --host")
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limits.max_request_bytes:
            raise _refuse_large(self._limits)

    def _count_held_bytes(self) -> int:
        """Those of requests that gave way are free as soon as these have their turn."""
        return sum(each.size for each in self._arrivals if not each.is_evicted)

    def _evict_largest(self, newest: _Arrival) -> None:
        """Make room for a body: the largest that is still on its way gives way, or else this one."""
        arriving = [each for each in self._arrivals if not each.is_whole and not each.is_evicted]
        largest = max(arriving, key=lambda each: each.size, default=newest)
        if largest.size <= newest.size:
            raise _refuse_busy()
        largest.evict()


def describe_policy(page: str) -> str:
    """What a page may do: run and look as it does, show pictures of its own, and ask this server."""
    allowed = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in re.findall(r"<(style|script)>(.*?)</\1>", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


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
    address = _parse_address(host)
    everywhere = address is not None and address.is_unspecified
    names = {*LOOPBACK, host.lower(), f"[{host.lower()}]"} | ({socket.gethostname().lower()} if everywhere else set())
    return Hosts(names, everywhere)


def _parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]"))
    return None


def _refuse_large(limits: ServingLimits) -> HTTPException:
    return HTTPException(413, f"the request is over {limits.max_request_bytes / 1e6:g} MB; send fewer pictures in one")


def _refuse_busy() -> HTTPException:
    return HTTPException(503, "too many requests at once; try again in a second", {"Retry-After": "1"})


def _answer(status: int, line: str, headers: Any = None) -> JSONResponse:
    return AsciiResponse(Refused(error=line).model_dump(), status, headers)


def answer_refusal(_: Request | None, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return _answer(error.status_code, str(error.detail), error.headers)
