"""Runs the demo as a process. Opens the port, loads the model, makes the application and runs the server."""

import logging
import socket
from collections.abc import Callable

import torch

from manifests import sample_folder
from refseg.apps.demo import make_demo
from refseg.apps.demo_server import make_server
from refseg.apps.demo_validation import read_validation_set
from refseg.apps.options import LOOPBACK, DemoOptions
from refseg.apps.predict import Segmenter
from refseg.errors import UsageError
from refseg.models.folding import fold_batch_norms
from refseg.training.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)


def run_demo(options: DemoOptions, *, ready: Callable[[str], None]) -> None:
    """Serve the demo until the process is interrupted.

    Args:
        options: The model that is served, and the address.
        ready: Called with the page's address when the model is loaded.

    Raises:
        UsageError: If the port cannot be listened on.
        CheckpointError: If the checkpoint cannot be loaded.
        DatasetError: If the dataset that `options.data` names cannot be read.
    """
    with _listen(options) as listener:  # before the model is loaded: a port that is in use is reported at once
        checkpoint = load_checkpoint(options.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
        recipe = checkpoint.recipe
        validation, why_no_validation = read_validation_set(recipe, options.data)
        app = make_demo(
            Segmenter(model=fold_batch_norms(checkpoint.model), recipe=recipe),
            sample=sample_folder(),
            facts=describe_model(checkpoint),
            allowed_hosts=options.allowed_hosts,
            validation=validation,
            why_no_validation=why_no_validation,
        )
        if options.host not in LOOPBACK:
            logger.warning(
                "listening on %s: every host that reaches this machine can use the demo, without a password",
                options.host,
            )
        host, port = listener.getsockname()[:2]
        shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{port}/")
        try:
            make_server(app).run(sockets=[listener])
        except KeyboardInterrupt:  # Ctrl-C is how a demo ends
            return


def describe_model(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what the page shows about a model, by name, such as architecture, sizes and training set."""
    recipe, lineage = checkpoint.recipe, checkpoint.state.lineage
    started_from = "; before that ".join(
        f"{ancestor.path} at step {ancestor.step:,}, trained on {ancestor.dataset}" for ancestor in lineage.ancestors
    )
    return {
        "model": f"{recipe.model.name} ({recipe.model.image_encoder})",
        "trained on": f"{' '.join(filter(None, (lineage.dataset, lineage.split)))}, {checkpoint.step:,} steps",
        **({"started from": started_from} if started_from else {}),
        "digest of the training set": lineage.dataset_digest,
        "parameters": f"{sum(weight.numel() for weight in checkpoint.model.parameters()) / 1e6:.1f} million",
        "input": f"{recipe.data.input_size[0]} × {recipe.data.input_size[1]} pixels",
        "words": f"at most {recipe.data.num_tokens} tokens",
        "checkpoint": str(checkpoint.folder),
    }


def _listen(options: DemoOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise UsageError(
            f"{options.host} port {options.port}: cannot listen ({error}); choose another --host or --port"
        ) from error
