"""The demo as a web application. It consists of a page, an HTTP interface, and a description of this interface.

The application serves everything that the page needs. No script, font or style comes from another host.
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

import refseg.evaluation
from refseg import __version__
from refseg.apps.demo_answers import Answer, Question, Refusal, UploadedPicture, answer_question
from refseg.apps.demo_examples import read_examples
from refseg.apps.demo_guard import RequestGuard
from refseg.apps.demo_pictures import KINDS, KeptPicture, Limits, PictureShelf
from refseg.apps.demo_validation import ValidationSet
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
# Forms contain Starlette's UploadFile, for which FastAPI has a class of its own; the annotation names the real one.
_Upload = Annotated[
    UploadFile,
    InstanceOf(),
    WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream"}),
    File(description="The picture's file, with its name."),
]
_OWN = Path(__file__).parent / "templates"
_SHARED = Path(refseg.evaluation.__file__).parent / "templates"
_STATIC = {
    "look.css": (_SHARED, "text/css"),
    "viewer.js": (_SHARED, "text/javascript"),
    "demo.css": (_OWN, "text/css"),
    "demo.js": (_OWN, "text/javascript"),
}
"""Files that the page loads: the folder and the type of each."""


def make_demo(
    segmenter: Segmenter,
    *,
    sample: Path,
    facts: Mapping[str, str],
    allowed_hosts: Sequence[str],
    validation: ValidationSet | None = None,
    why_no_validation: str = "",
    limits: Limits | None = None,
) -> FastAPI:
    """Make the application that serves a model.

    Args:
        segmenter: The model that answers.
        sample: Folder of the bundled sample, for examples and credits.
        facts: Information about the model that the page shows, by name. `model` and `trained on` are the headline.
        allowed_hosts: Host names by which browsers may call this server. `*` allows any name. On loopback this protects
            against DNS rebinding, where the name of another site is resolved to this machine.
        validation: Validation set of the model. The page shows examples from it first, and uploaded pictures are
            compared with it.
        why_no_validation: Reason why there is no validation set. The page shows it.
        limits: Limits of uploads, texts and memory.

    Raises:
        AnnotationError: If the sample is damaged.
    """
    limits = limits or Limits()
    shelf = PictureShelf(segmenter, limits)
    examples = read_examples(sample)
    pages = open_templates("refseg.apps", "refseg.evaluation")
    app = FastAPI(
        title="refseg demo",
        version=__version__,
        description="Segments what an expression names in a picture. Upload a picture once, then send expressions.",
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
        """Upload a picture and encode it. The same file is encoded only once."""
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
            unlike=validation.known.describe_difference(kept.shown()) if validation else None,
            seconds=time.perf_counter() - started,
        )

    @app.get("/api/images/{image_id}", responses=_JPEG | _REFUSALS | _GONE, response_class=Response)
    def show_picture(image_id: str) -> Response:
        """Return the picture as the model received it, as a JPEG.

        It is upright, without transparency, and scaled down.
        """
        return Response(find(image_id).shown_jpeg, media_type="image/jpeg")

    @app.post("/api/segment", responses=_REFUSALS | _GONE)
    def segment(question: Question) -> Answer:
        """Find what a text names in a picture that was uploaded."""
        kept = find(question.image_id)
        with shelf.turn:
            return answer_question(segmenter, kept, question, max_characters=limits.text_characters)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False, response_class=HTMLResponse)
    def page() -> str:
        return pages.get_template("demo.html.j2").render(
            facts=facts,
            limits=limits,
            kinds=KINDS,
            validation=validation,
            why_no_validation=why_no_validation,
            examples=examples.values(),
            version=__version__,
        )

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def interface_page(request: Request) -> str:
        return pages.get_template("demo_docs.html.j2").render(api=app.openapi(), host=request.url.netloc)

    @app.get("/{name}.css", include_in_schema=False)
    def style(name: str) -> FileResponse:
        return static_file(f"{name}.css")

    @app.get("/{name}.js", include_in_schema=False)
    def script(name: str) -> FileResponse:
        return static_file(f"{name}.js")

    def static_file(name: str) -> FileResponse:
        if name not in _STATIC:
            raise HTTPException(404, f"no file {name}; expected one of {', '.join(_STATIC)}")
        folder, kind = _STATIC[name]
        return FileResponse(folder / name, media_type=kind)

    @app.get("/validation/{number}.jpg", include_in_schema=False)
    def validation_example(number: int) -> Response:
        offered = validation.examples if validation else {}
        if number not in offered:
            raise HTTPException(404, f"no example {number} of the validation set; there are {len(offered)}")
        return Response(offered[number].data, media_type="image/jpeg")

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
    """Answer 422 for invalid input, and 500 for any other error of this package."""
    return JSONResponse({"detail": str(error)}, 422 if isinstance(error, ImageError | UsageError) else 500)


def _refuse_fields(request: Request, error: Exception) -> JSONResponse:
    """Answer with one sentence that lists all invalid fields of a request."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    kind = request.headers.get("content-type", "")
    if isinstance(error.body, bytes) and "json" not in kind:  # FastAPI parses JSON only if the type says so
        faults.append(f"found Content-Type: {kind or 'none'}, expected Content-Type: application/json")
    return JSONResponse({"detail": f"{'; '.join(faults)}. See /docs"}, 422)


async def _refuse_unreadable(request: Request, error: Exception) -> Response:
    """Describe the fault of JSON that is not UTF-8 or is nested too deeply. FastAPI's own answer does not do this."""
    assert isinstance(error, AnyHTTPException)
    if isinstance(error.__cause__, ValueError | RecursionError):
        refusal = f"body: cannot be read ({error.__cause__}); send JSON in UTF-8, or a form with a picture. See /docs"
        return JSONResponse({"detail": refusal}, error.status_code)
    return await http_exception_handler(request, error)


def _operation_id(route: APIRoute) -> str:
    return route.name
