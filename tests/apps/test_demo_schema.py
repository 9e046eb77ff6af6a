"""Requests made from the demo's own OpenAPI description, valid and not, get the answers that it describes.

schemathesis makes the requests; the model is not trained, since nothing here looks at masks.
"""

from typing import Any

import pytest
import schemathesis.openapi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as promises
from starlette.testclient import TestClient

from manifests import sample_folder
from refseg.apps.demo import make_demo
from refseg.apps.predict import Segmenter
from refseg.config import load_recipe
from refseg.models import build_model

NUM_REQUESTS = 15
"""Per operation and kind; longer runs are started by hand."""
PROMISES = [
    not_a_server_error,
    promises.status_code_conformance,
    promises.content_type_conformance,
    promises.response_headers_conformance,
    promises.response_schema_conformance,
]
"""That every valid request is accepted is not promised: no schema says which bytes are a picture."""

PICTURE = (sample_folder() / "images/train2014/000000397133.jpg").read_bytes()


@pytest.fixture(scope="module")
def demo() -> Any:
    settings = ["data.input_size=64", "model.dim=32", "model.num_decoder_layers=1", "model.ffn_dim=64"]
    recipe = load_recipe("toy-quick", settings)
    model = build_model(recipe.model, input_size=recipe.data.input_size).eval()
    return make_demo(Segmenter(model=model, recipe=recipe), sample=sample_folder(), facts={}, allowed_hosts=["*"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        ("POST", "/api/images", GenerationMode.POSITIVE),
        ("POST", "/api/images", GenerationMode.NEGATIVE),
        ("GET", "/api/images/{image_id}", GenerationMode.POSITIVE),  # any text is a valid id
        ("POST", "/api/segment", GenerationMode.POSITIVE),
        ("POST", "/api/segment", GenerationMode.NEGATIVE),
    ],
)
def test_every_answer_is_one_that_the_description_names(
    demo: Any, method: str, path: str, mode: GenerationMode
) -> None:
    with TestClient(demo) as client:
        image_id = client.post("/api/images", files={"file": ("a.jpg", PICTURE)}).json()["image_id"]
    schema = schemathesis.openapi.from_asgi("/openapi.json", demo)
    schema.config.analysis.constants.enabled = False  # it would read all modules for values to try: half a minute
    operation = schema[path][method]

    @settings(
        max_examples=NUM_REQUESTS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def ask(case: Case, of_kept_picture: bool) -> None:
        if of_kept_picture and isinstance(case.body, dict) and "image_id" in case.body:
            case.body["image_id"] = image_id
        elif of_kept_picture and case.path_parameters:
            case.path_parameters["image_id"] = image_id
        elif of_kept_picture and isinstance(case.body, dict) and path == "/api/images":
            case.body["file"] = PICTURE
        statuses.add(case.call_and_validate(checks=PROMISES).status_code)

    statuses: set[int] = set()
    ask()
    if mode.is_positive:
        assert 200 in statuses
