"""`contrique rate`: the page that asks, and what it says to this process.

Only the page itself may answer: a request that a browser sends from another page names that page as its origin and is
refused, and so is one that names another host.
"""

import asyncio
import dataclasses
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from contrique import pages
from contrique.config import ServingLimits
from contrique.images import BadImage
from contrique.rating.candidates import RatingError
from contrique.rating.interview import Interview, OutOfTurn, UnknownPicture
from contrique.rating.session import LABELS, MAX_NAME
from contrique.serving.app import create_server, locate
from contrique.serving.guard import AsciiResponse, Guard, answer_refusal, describe_policy, list_hosts

_MAX_BODY: Final = 10_000  # bytes
_MAX_KEYS: Final = 2
Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rater: str = Field(max_length=10 * MAX_NAME)
    question: int = Field(ge=0)


class Answered(_Message):
    """An answer to the question that is shown."""

    pictures: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=_MAX_KEYS)
    answer: int = Field(ge=0, le=9)
    seconds: float = Field(0.0, ge=0, le=1e6)
    scale: float = Field(1.0, ge=0, le=1e3)


class Undone(_Message):
    """The answer before the question that is shown shall be taken back."""


def application(interview: Interview, limits: ServingLimits, host: str = "127.0.0.1", grey: float = 0.0) -> FastAPI:
    """The page and its endpoints: `/`, `/question`, `/answer`, `/undo`, `/picture/KEY`.

    Args:
        interview: asks the raters.
        limits: of requests; bodies are much smaller here.
        host: that it will listen on; requests that name another host are refused.
        grey: seconds of grey between two pictures.
    Returns:
        an ASGI application.
    """
    pool = ThreadPoolExecutor(limits.decoders, "rating")
    turn = threading.Lock()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(wait=False, cancel_futures=True)
        interview.close()

    app = FastAPI(
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=AsciiResponse,
    )
    steps = list(enumerate(LABELS, 1))
    page = pages.render(
        "rate.html",
        {"method": interview.session.method, "steps": steps[::-1], "max_name": MAX_NAME, "grey": round(1000 * grey)},
    )
    limits = dataclasses.replace(limits, max_request_bytes=_MAX_BODY)
    app.add_middleware(Guard, limits=limits, hosts=list_hosts(host), policy=describe_policy(page))
    app.add_exception_handler(AnyHTTPException, answer_refusal)

    async def run(call: Callable[[], Result], *, in_turn: bool = True) -> Result:
        """In a thread; what changes or reads answers one after another."""

        def work() -> Result:
            if not in_turn:
                return call()
            with turn:
                return call()

        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except UnknownPicture as error:
            raise HTTPException(404, str(error)) from None
        except OutOfTurn as error:
            raise HTTPException(409, str(error)) from None
        except (RatingError, BadImage) as error:
            raise HTTPException(422, str(error)) from None

    @app.get("/", response_class=HTMLResponse)
    async def show() -> str:
        return page

    @app.get("/question")
    async def question(rater: str = "") -> dict[str, Any]:
        return await run(lambda: interview.view(rater))

    @app.post("/answer")
    async def answer(request: Request) -> dict[str, Any]:
        message = await _read(request, Answered)
        values = (message.rater, message.question, message.pictures, message.answer, message.seconds, message.scale)
        await run(lambda: interview.answer(*values))
        return await run(lambda: interview.view(message.rater))

    @app.post("/undo")
    async def undo(request: Request) -> dict[str, Any]:
        message = await _read(request, Undone)
        await run(lambda: interview.undo(message.rater, message.question))
        return await run(lambda: interview.view(message.rater))

    @app.get("/picture/{key}")
    async def picture(key: str) -> Response:
        return Response(await run(lambda: interview.picture(key), in_turn=False), media_type="image/png")

    return app


async def _read(request: Request, form: type[Body]) -> Body:
    """What the page sent.

    Raises:
        HTTPException: it comes from another page, or is not of the form.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        raise HTTPException(403, "sent by another page; answer on the page of `contrique rate`")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(422, "no JSON; send application/json")
    try:
        return form.model_validate_json(await request.body())
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(ascii(str(part))[1:-1][:100] for part in fault["loc"])
        raise HTTPException(422, f"{where}: {fault['msg']}") from None


def serve(
    interview: Interview, listener: socket.socket, limits: ServingLimits, host: str, grey: float, rater: str = ""
) -> None:
    """Ask until the process is told to stop (Ctrl+C, SIGTERM).

    Args:
        interview: asks the raters.
        listener: of `contrique.serving.app.listen`; closed at the end.
        limits: of requests and decoding.
        host, grey: as `application`.
        rater: whose name the address carries; may be empty.
    """
    address = locate(listener, host) + (f"?rater={quote(rater)}" if rater else "")
    print(f"{address} asks about pictures; Ctrl+C stops it, and every answer is kept", flush=True)
    with suppress(KeyboardInterrupt):  # how a person ends it
        create_server(application(interview, limits, host, grey), limits).run(sockets=[listener])
