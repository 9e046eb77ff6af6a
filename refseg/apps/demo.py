"""The demo as a web application: a page, the HTTP interface it uses, and that interface's description.

All that a browser asks for comes from here: no script, font or style of another host.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from pydantic import InstanceOf, WithJsonSchema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException

from refseg import __version__
from refseg.apps.demo_answers import Answer, Question, Refusal, UploadedPicture, answer_question
from refseg.apps.demo_examples import read_examples
from refseg.apps.demo_guard import RequestGuard
from refseg.apps.demo_pictures import KINDS, KeptPicture, Limits, PictureShelf
from refseg.apps.predict import Segmenter
from refseg.errors import ImageError, RefsegError, UsageError
from refseg.evaluation.pages import open_templates

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body cannot be read, or the Host header names another server."},
    403: {"model": Refusal, "description": "The request comes from another site."},
    408: {"model": Refusal, "description": "The request took too long to arrive."},
    413: {"model": Refusal, "description": "The request has too many bytes."},
    422: {"model": Refusal, "description": "The picture or the text cannot be used."},
}
_GONE: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "No picture of this id is kept: upload it."}
}
_JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
# FastAPI's own UploadFile stands for Starlette's, of which forms are made; an annotation should say what comes.
_Upload = Annotated[
    UploadFile,
    InstanceOf(),
    WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream"}),
    File(description="The picture's file, with its name."),
]
_TEMPLATES = Path(__file__).parent / "templates"


def make_demo(
    segmenter: Segmenter,
    *,
    sample: Path,
    facts: Mapping[str, str],
    allowed_hosts: Sequence[str],
    limits: Limits | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        segmenter: The model that answers.
        sample: Folder of the bundled sample, for examples and credits.
        facts: About the model, for the page: name to value.
        allowed_hosts: Names by which browsers may call this server; `*` for any. On loopback this keeps out pages of
            other sites whose name was made to point here (DNS rebinding).
        limits: Of uploads, texts and memory.

    Raises:
        AnnotationError: If the sample is damaged.
    """
    limits = limits or Limits()
    shelf = PictureShelf(segmenter, limits)
    examples = read_examples(sample)
    pages = open_templates("refseg.apps")
    app = FastAPI(
        title="refseg demo",
        version=__version__,
        description="Segments what an expression names in a picture. Upload a picture once, then ask about it.",
        docs_url=None,  # FastAPI's own pages load their scripts from another host
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.add_middleware(
        RequestGuard, max_bytes=limits.upload_bytes, max_seconds=limits.upload_seconds, allowed_hosts=allowed_hosts
    )
    app.add_exception_handler(RefsegError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(AnyHTTPException, _refuse_unreadable)

    def find(image_id: str) -> KeptPicture:
        kept = shelf.find(image_id)
        if kept is None:
            raise HTTPException(404, f"no picture {image_id[:12]}... is kept (any more); upload it again")
        return kept

    @app.post("/api/images", responses=_REFUSALS)
    def upload_picture(file: _Upload) -> UploadedPicture:
        """Upload a picture and encode it; the same file is encoded once."""
        started = time.perf_counter()
        name = file.filename or ""
        kept, already_encoded = shelf.put(file.file.read(), name)
        height, width = kept.encoded.size
        return UploadedPicture(
            image_id=kept.image_id,
            name=name,
            width=width,
            height=height,
            already_encoded=already_encoded,
            seconds=time.perf_counter() - started,
        )

    @app.get("/api/images/{image_id}", responses=_JPEG | _REFUSALS | _GONE, response_class=Response)
    def show_picture(image_id: str) -> Response:
        """The picture as the model saw it: upright, without transparency, scaled down; a JPEG."""
        return Response(find(image_id).shown_jpeg, media_type="image/jpeg")

    @app.post("/api/segment", responses=_REFUSALS | _GONE)
    def segment(question: Question) -> Answer:
        """Find what a text names in a picture that was uploaded."""
        kept = find(question.image_id)
        with shelf.turn:
            return answer_question(segmenter, kept, question, max_characters=limits.text_characters)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False, response_class=HTMLResponse)
    def page() -> str:
        shown = {"facts": facts, "limits": limits, "kinds": KINDS, "examples": examples.values()}
        return pages.get_template("demo.html.j2").render(shown, version=__version__)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def interface_page(request: Request) -> str:
        return pages.get_template("demo_docs.html.j2").render(api=app.openapi(), host=request.url.netloc)

    @app.get("/demo.css", include_in_schema=False)
    def style() -> FileResponse:
        return FileResponse(_TEMPLATES / "demo.css", media_type="text/css")

    @app.get("/demo.js", include_in_schema=False)
    def script() -> FileResponse:
        return FileResponse(_TEMPLATES / "demo.js", media_type="text/javascript")

    @app.get("/examples/{image_id}.jpg", include_in_schema=False)
    def example(image_id: int) -> FileResponse:
        if image_id not in examples:
            raise HTTPException(404, f"no example {image_id}; expected one of {', '.join(map(str, examples))}")
        return FileResponse(examples[image_id].path, media_type="image/jpeg")

    @app.get("/credits", include_in_schema=False, response_class=PlainTextResponse)
    def credit() -> str:
        return (sample / "README.md").read_text(encoding="utf-8")

    return app


def _refuse(_request: Request, error: Exception) -> JSONResponse:
    """Faults of what was sent are the sender's to know; any other is ours."""
    return JSONResponse({"detail": str(error)}, 422 if isinstance(error, ImageError | UsageError) else 500)


def _refuse_fields(request: Request, error: Exception) -> JSONResponse:
    """All wrong fields of a request in one sentence."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    kind = request.headers.get("content-type", "")
    if isinstance(error.body, bytes) and "json" not in kind:  # so FastAPI has not read it
        faults.append(f"found Content-Type: {kind or 'none'}, expected Content-Type: application/json")
    return JSONResponse({"detail": f"{'; '.join(faults)}. See /docs"}, 422)


async def _refuse_unreadable(request: Request, error: Exception) -> Response:
    """What FastAPI says of JSON that is no UTF-8, or too deep, is neither what is wrong nor what to do."""
    assert isinstance(error, AnyHTTPException)
    if isinstance(error.__cause__, ValueError | RecursionError):
        refusal = f"body: cannot be read ({error.__cause__}); send JSON in UTF-8, or a form with a picture. See /docs"
        return JSONResponse({"detail": refusal}, error.status_code)
    return await http_exception_handler(request, error)


def _operation_id(route: APIRoute) -> str:
    return route.name
