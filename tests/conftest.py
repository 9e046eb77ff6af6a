"""Fixtures every test may use."""

import gc
import hashlib
import http.client
import itertools
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with slow tests first, so that no worker is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection: a full pass visits a million objects, in forked workers too."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Return the modules to the collector, so that the interpreter ends as usual."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths of folders to make. `tmp_path_factory.mktemp` lists all folders made so far before it makes another."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_caches(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another run left in the machine's caches."""
    folder = next(_caches)
    folder.mkdir()
    monkeypatch.setenv("REFSEG_CACHE", str(folder))


@pytest.fixture(autouse=True)
def _own_logging() -> None:
    """No test logs through what a command of an earlier test, or of a shared fixture, has set up in this process.

    Pytest captures at the root and at each logger that does not propagate when a test begins; a logger that a test then
    lets propagate would be captured twice.
    """
    for name in ("refseg", "pipelines"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; without it, or without playwright, tests that look at pages skip."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page that must complain of nothing and read nothing but its own files."""
    said: list[str] = []
    pages = []

    def open_page(path: Path, *, width: int = 1200, fragment: str = "", scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        pages.append(page)
        own = (path.parent.as_uri() + "/", "data:")
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else said.append(request.url))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("REFSEG_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data beside the checkout (../shared/data or REFSEG_SHARED_DATA); not at {folder}")
    return folder


@pytest.fixture(scope="session")
def edit_descriptor() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Change a dataset's descriptor and make its hashes right again, by the words of the specification alone."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads((folder / "refseg.json").read_text())
        change(content)
        shards = [[shard["name"], shard["split"], shard["rows_sha256"]] for shard in content["shards"]]
        facts = [content["format_version"], content["dataset"], shards]
        if content["mix"]:
            facts.append([[member["dataset"], float(member["weight"])] for member in content["mix"]])
        content["digest"] = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        rest = {name: value for name, value in content.items() if name not in ("format", "descriptor_sha256")}
        text = json.dumps(rest, separators=(",", ":"))
        content["descriptor_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "refseg.json").write_text(json.dumps(content))

    return edit


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a tiny model trained for 12 steps on 24 toy scenes, which lie where its recipe says."""
    from pipelines.build import build_dataset
    from pipelines.options import BuildOptions
    from pipelines.toy import draw_toy
    from refseg.cli import main

    folder = tmp_path_factory.mktemp("toy_run")
    draw_toy(folder / "source", num_images=40, seed=0, image_size=(96, 96))
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1))
    settings = [
        f"data.root={folder / 'shards'}", "data.input_size=64", "data.expressions_per_image=3",
        "model.dim=32", "model.num_decoder_layers=1", "model.ffn_dim=64", "train.lr=1e-2",
        "train.epochs=2", "train.global_batch=4", "train.log_every_steps=1", "train.max_steps=12",
        "train.val_every_epochs=1", "train.warmup_steps=0",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)
        patch.setattr("refseg.train.exit_at_sigterm", lambda: None)
        assert main(["train", "toy-quick", "--out", str(folder / "run"), "--set", *settings]) == 0
    return folder / "run"


@dataclass(frozen=True, slots=True)
class S3Server:
    """An S3 server on loopback; `configure` says its address to s3fs, in this process and those it starts."""

    endpoint: str

    def configure(self, patch: pytest.MonkeyPatch, endpoint: str | None = None, **config: object) -> None:
        """Each request is made once (no retries of botocore's own) unless `config`, botocore's, says otherwise."""
        import fsspec

        config = {"retries": {"total_max_attempts": 1}, **config}
        options = {"endpoint_url": endpoint or self.endpoint, "key": "k", "secret": "s", "config_kwargs": config}
        patch.setenv("FSSPEC_S3", json.dumps(options))
        patch.setitem(fsspec.config.conf, "s3", options)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Moto's server; the settings of fsspec name it, so that `s3://` works everywhere."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        s3_server = S3Server(f"http://{host}:{port}")
        s3_server.configure(patch)
        yield s3_server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """URL of a new and empty bucket."""
    import fsspec

    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


class FaultyProxy(ThreadingHTTPServer):
    """Stands before a server and spoils answers: each request takes the next of `faults`, none when they are used up.

    Faults: `503` and other numbers: this status. `cut`: half of the answer. `drop`: no answer. `short`: half of the
    body goes on. `slow`: after `slow_seconds`. `hold`: the request goes no further until `released` is set.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, server: S3Server) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.target = server.endpoint.partition("://")[2]
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: Iterator[str | None] = iter(())
        self.slow_seconds = 2.0
        self.released = threading.Event()
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms
    server: FaultyProxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append(f"{self.command} {self.path}")
            fault = next(self.server.faults, None)
        if fault == "drop":
            self.close_connection = True
            return
        if fault is not None and fault.isdigit():
            self._answer(int(fault), {}, b"")
            return
        if fault == "hold":
            self.server.released.wait()
            self.close_connection = True
            return
        if fault == "slow":
            self.server.released.wait(self.server.slow_seconds)
        if fault == "short":
            body = body[: len(body) // 2]
            self.headers.replace_header("Content-Length", str(len(body)))
        connection = http.client.HTTPConnection(self.server.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server")
        }
        self._answer(answer.status, headers, data[: len(data) // 2] if fault == "cut" else data, len(data))

    def _answer(self, status: int, headers: dict[str, str], data: bytes, num_bytes: int = 0) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(num_bytes)} | {name.title(): value for name, value in headers.items()}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.close_connection = len(data) < num_bytes

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: tests look at `FaultyProxy.requests`."""


@pytest.fixture(scope="session")
def _proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(s3_server)
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def faulty_s3(
    s3_server: S3Server, bucket: str, _proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """A proxy before the S3 server that `s3://` now leads through; faults are the test's to set."""
    s3_server.configure(monkeypatch, _proxy.endpoint)
    _proxy.requests.clear()
    yield _proxy
    _proxy.faults = iter(())
    _proxy.released.set()
    _proxy.released = threading.Event()
