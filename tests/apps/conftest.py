"""A dataset for the pages that show one, and a running demo."""

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests import sample_folder
from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.apps.demo import make_demo
from refseg.apps.demo_server import make_server
from refseg.apps.demo_validation import read_validation_set
from refseg.apps.predict import Segmenter
from refseg.config import load_recipe
from tests.colour_model import ColourModel

Open = Callable[..., Any]
"""What the fixture `open_page` gives."""
UNNAMED = """() => {
  const named = (element) => [element.ariaLabel, element.alt, element.title, element.textContent.trim(),
    element.labels?.[0]?.textContent, element.getAttribute("aria-labelledby"),
    element.matches("img") && element.closest("button")?.ariaLabel].some(Boolean);
  const all = document.querySelectorAll("button, input, select, img, summary, dialog, form, nav, section");
  return [...all].filter((e) => e.checkVisibility() && !named(e)).map((e) => e.outerHTML.slice(0, 80));
}"""
"""Gives what a page shows without a name that a screen reader could say."""
Faults = Callable[[Any], list[tuple[str, str]]]
"""What the fixture `axe_faults` gives."""
_EVIL = "</script><script>document.title='run'</script><img src=x onerror=alert(1)> & <!--"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 toy scenes of 96 x 128 pixels: one sentence is markup, one ref was rejected."""
    folder = tmp_path_factory.mktemp("browse")
    draw_toy(folder / "source", num_images=24, seed=0, image_size=(96, 128))
    path = folder / "source/toy/refs(refseg).p"
    refs = pickle.loads(path.read_bytes())
    train = [ref for ref in refs if ref["split"] == "train"]
    train[0]["sentences"][0]["sent"] = _EVIL
    train[1]["image_id"] = 999_999
    path.write_bytes(pickle.dumps(refs))
    build_dataset(
        BuildOptions(
            dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1,
            images_per_shard=8, on_bad_sample="skip",
        )
    )  # fmt: skip
    return folder / "shards"


@pytest.fixture(scope="session")
def evil() -> str:
    """The sentence of `dataset` that is markup."""
    return _EVIL


@pytest.fixture(scope="session")
def axe_faults() -> Faults:
    """Gives what axe-core finds at fault on a page: the rule, and the first element that breaks it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()

    def find(page: Any) -> list[tuple[str, str]]:
        faults = axe.run(page, options={"preload": False}).response["violations"]
        return [(fault["id"], fault["nodes"][0]["html"]) for fault in faults]

    return find


@pytest.fixture(scope="session")
def segmenter() -> Segmenter:
    """Of a model whose masks are known: the parts of a picture that have the colour which the sentence names."""
    return Segmenter(model=ColourModel().eval(), recipe=load_recipe("toy-quick", ["data.input_size=64"]))


@pytest.fixture(scope="session")
def demo_port(segmenter: Segmenter, dataset: Path) -> Iterator[int]:
    """Port on 127.0.0.1 of a demo of that model, whose validation set is `dataset`."""
    validation, _ = read_validation_set(segmenter.recipe, dataset)
    app = make_demo(
        segmenter,
        sample=sample_folder(),
        facts={"model": "tiny <fcnet>", "trained on": "toy/refseg train, 12 steps"},
        allowed_hosts=["127.0.0.1", "localhost"],
        validation=validation,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = make_server(app)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join()
