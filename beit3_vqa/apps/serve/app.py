"""The application: a page, the interface that it asks, and the description of the interface."""

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import StringConstraints
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from beit3_vqa.apps.serve import replies
from beit3_vqa.apps.serve.batching import Batcher, Overloaded
from beit3_vqa.apps.serve.ensemble import Answer, Ensemble, Question
from beit3_vqa.apps.serve.guard import form_problem
from beit3_vqa.apps.serve.limits import MAX_FIELDS, MAX_FORM_BYTES, MAX_OPTION, MAX_QUESTION
from beit3_vqa.apps.serve.upload_reader import TooLargeError, UploadReader
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.errors import InputError, NotFiniteError, one_line, short
from beit3_vqa.runtime.files import is_text

PAGE = Path(__file__).with_name("page")
FILES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/attention.js": ("../../attention.js", "text/javascript"),  # the report's palette and this page's are one
    "/token.js": ("token.js", "text/javascript"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
OPEN_PATHS = frozenset({*FILES, "/openapi.json"})
_PROBLEMS = {
    400: "Not HTTP, or a form that can't be read.",
    401: "The token (Authorization: Bearer TOKEN) is missing or wrong.",
    403: "Sent by a page of another site.",
    413: "Larger than a request may be.",
    415: "Not a form (multipart/form-data), or not in UTF-8.",
    421: "Sent to a name that isn't this server's.",
    422: "An image that can't be read, or a question that can't be answered.",
    500: "A model whose outputs aren't finite numbers, or a failure of the server.",
    503: "Too many questions are waiting; ask again in a moment.",
}


class _BoundedRequest(Request):
    """A request whose form is multipart, with few parts and short texts in UTF-8. `Guard` bounds its body's length."""

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]  # FastAPI awaits it
        """Read the form, within bounds; raise status 415 for another kind of form or text, 400 for a repeated field."""
        problem = form_problem(self.headers.get("content-type", ""))
        if problem:
            raise HTTPException(415, problem)
        # The parser silently takes text that isn't UTF-8 for Latin-1. Told that all of it is Latin-1, it keeps
        # every byte, and the strict decoding below finds what isn't UTF-8.
        headers = [(k, v + b"; charset=latin-1" if k == b"content-type" else v) for k, v in self.scope["headers"]]
        raw = Request({**self.scope, "headers": headers}, self.receive)
        form = await raw.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FORM_BYTES)
        try:
            parts = [(k, v.encode("latin-1").decode() if isinstance(v, str) else v) for k, v in form.multi_items()]
        except UnicodeDecodeError as error:
            await form.close()
            raise HTTPException(415, "text must be UTF-8.") from error
        counts = Counter(name for name, _ in parts if name != "choices")
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            await form.close()
            raise HTTPException(400, f"the field {short(twice)} is there twice.")
        return FormData(parts)


class _BoundedRoute(APIRoute):
    """A route whose requests are bounded."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler, which gets a bounded request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return handle


def make_app(ensemble: Ensemble, batcher: Batcher[Question, Answer], reader: UploadReader) -> FastAPI:
    """Build the application, without its guard.

    Args:
        ensemble: models that answer.
        batcher: queue before them.
        reader: what makes questions ready for the queue.
    """
    # FastAPI's own pages of documentation load scripts from the net.
    app = FastAPI(title="beit3_vqa", summary="Ask a model about an image.", version="1", docs_url=None, redoc_url=None)
    app.router.route_class = _BoundedRoute
    _add_error_handlers(app)
    for address, (name, kind) in FILES.items():
        app.add_api_route(address, _sender(name, kind), include_in_schema=False)
    description = replies.describe(ensemble)

    @app.get("/api/model")
    async def model() -> replies.Description:
        """Say which models answer, how many options a question may have, and what bounds there are."""
        return description

    @app.post(
        "/api/answer",
        responses={status: {"model": replies.Problem, "description": said} for status, said in _PROBLEMS.items()},
    )
    async def answer(
        image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF.")],
        question: Annotated[str, Form(max_length=MAX_QUESTION)],
        choices: Annotated[
            list[Annotated[str, StringConstraints(max_length=MAX_OPTION)]] | None,
            Form(max_length=len(LETTERS), description="The options in order, the field once for each."),
        ] = None,
        attention: Annotated[bool, Form(description="Whether to say where the models looked.")] = False,
    ) -> replies.Reply:
        """Answer one question about one image. Requests of several clients are computed together."""
        choices = choices or []
        if not all(map(is_text, (question, *choices))):
            raise InputError("the question and its options must be text, without NUL.")
        asked = await reader.prepare(image.file, question, choices, attention=attention)
        found = await asyncio.wrap_future(batcher.submit(asked))
        return replies.reply(found, choices, description.models)

    return app


def _sender(name: str, kind: str) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(PAGE / name, media_type=kind)

    return send


def _add_error_handlers(app: FastAPI) -> None:
    """Turn every error into one JSON object with the text `error`."""

    async def say(request: Request, error: Exception) -> JSONResponse:
        status = {TooLargeError: 413, InputError: 422, Overloaded: 503}.get(type(error), 500)
        return _problem(status, str(error))

    async def say_not_finite(request: Request, error: Exception) -> JSONResponse:
        # Which file it is concerns whoever started the server.
        print(f"error: {error}", file=sys.stderr, flush=True)
        return _problem(500, "a model's outputs aren't finite numbers: no answer. The server's terminal says which.")

    async def say_status(request: Request, error: Any) -> JSONResponse:
        return _problem(error.status_code, str(error.detail), error.headers)

    async def say_invalid(request: Request, error: Any) -> JSONResponse:
        # Not what was sent: it may be long.
        return _problem(422, "; ".join(said(problem, error.body) for problem in error.errors()[:3]))

    def said(problem: Any, form: Any) -> str:
        name = ".".join(map(str, problem["loc"][1:]))
        # An empty field counts as missing there.
        empty = problem["type"] == "missing" and isinstance(form, FormData) and name in form
        return f"{name}: {'is empty.' if empty else problem['msg']}"

    async def say_failed(request: Request, error: Exception) -> JSONResponse:
        return _problem(500, "the server failed; its terminal says how.")

    app.add_exception_handler(NotFiniteError, say_not_finite)
    for kind in (InputError, Overloaded):
        app.add_exception_handler(kind, say)
    app.add_exception_handler(HTTPException, say_status)
    app.add_exception_handler(RequestValidationError, say_invalid)
    app.add_exception_handler(Exception, say_failed)


def _problem(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": one_line(text)}, status, headers or ({"Retry-After": "1"} if status == 503 else None))
