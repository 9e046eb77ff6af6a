"""`refseg demo`: a local web page that segments what an expression names in a picture."""

import argparse
import socket

from refseg.addresses import path_argument
from refseg.errors import UsageError

EXAMPLE = "refseg demo --checkpoint runs/toy"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="RUN",
        help="a run's folder, a checkpoint's, or what `refseg publish` wrote",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default: %(default)s, this machine alone); 0.0.0.0 lets in whoever reaches this machine",
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    import logging

    try:
        from refseg.apps.demo import make_demo
        from refseg.apps.demo_server import make_server
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "h11", "starlette", "multipart", "python_multipart"):
            raise
        raise UsageError(
            f"refseg demo needs the package {error.name}; install it with: pip install 'refseg[demo]'"
        ) from error

    import torch

    from manifests import sample_folder
    from refseg.apps.predict import Segmenter
    from refseg.models.folding import fold_batch_norms
    from refseg.training.checkpoint import load_checkpoint

    is_local = args.host in _LOOPBACK
    listener = _listen(args.host, args.port)
    with listener:
        checkpoint = load_checkpoint(args.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
        recipe = checkpoint.recipe
        app = make_demo(
            Segmenter(model=fold_batch_norms(checkpoint.model), recipe=recipe),
            sample=sample_folder(),
            facts={
                "model": recipe.model.name,
                "parameters": f"{sum(weight.numel() for weight in checkpoint.model.parameters()) / 1e6:.1f} million",
                "input": f"{recipe.data.input_size[0]} × {recipe.data.input_size[1]} pixels",
                "words": f"{recipe.data.num_tokens} tokens at most",
                "trained on": f"{checkpoint.state.dataset}, {checkpoint.step:,} steps",
            },
            allowed_hosts=_allowed_hosts(args.host),
        )
        if not is_local:
            logging.getLogger(__name__).warning(
                "listening on %s: whoever reaches this machine can use the demo, without a password", args.host
            )
        host, port = listener.getsockname()[:2]
        shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        print(f"open http://{shown}:{port}/  (Ctrl-C ends)", flush=True)
        try:
            make_server(app).run(sockets=[listener])
        except KeyboardInterrupt:  # the way to end it
            return 0
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded: that it is in use is said at once."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: expected 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"{host} port {port}: cannot listen ({error}); choose another --host or --port") from error


def _allowed_hosts(host: str) -> list[str]:
    """Names in a request's Host header that are answered."""
    if host in ("0.0.0.0", "::"):
        return ["*"]  # the names by which others reach this machine are not ours to know
    named = {host, *_LOOPBACK} if host in _LOOPBACK else {host}
    return sorted(f"[{name}]" if ":" in name else name for name in named)
