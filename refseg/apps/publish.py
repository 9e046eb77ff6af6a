"""Writes a run's best checkpoint as a folder for the Hugging Face Hub, with a model card of recipe and scores."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from refseg import __version__
from refseg.addresses import local_path
from refseg.config import Recipe
from refseg.errors import UsageError
from refseg.evaluation.origin import OriginOfModel
from refseg.evaluation.pages import open_templates
from refseg.evaluation.results import Results, load_results
from refseg.lineage import describe_leaks
from refseg.models.hub_folder import PublishedModel, without_paths
from refseg.training.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)

_ARCHITECTURES = {"fcnet": "FCNet", "crformer": "CRFormer", "lts": "LTS", "cris": "A CRIS-style baseline"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A published model.

    Attributes:
        folder: Folder with `config.json`, `model.safetensors` and `README.md`.
        checkpoint: Folder of the checkpoint whose weights were published.
        splits: Splits whose scores are on the card, as `<dataset id> <split>`, without controls.
    """

    folder: Path
    checkpoint: Path
    splits: tuple[str, ...]


def publish(source: Path, out: Path, *, licence: str = "") -> Publication:
    """Write a run's best checkpoint, or a given one, as a folder for the Hub.

    Args:
        source: A run's folder (its best checkpoint) or a checkpoint's; its folder `evaluation` gives the scores of this
            checkpoint.
        out: New folder; its name is the name of the model.
        licence: Licence of the weights by the Hub's name, such as apache-2.0; by default the card names none.

    Raises:
        CheckpointError: If there is no sound checkpoint.
        UsageError: If `out` exists, or scores cannot be read.
    """
    source, out = local_path(source), local_path(out)
    if out.exists():
        raise UsageError(f"{out}: there is something already; remove it or choose another --out")
    checkpoint = load_checkpoint(source)
    state = checkpoint.state
    published = PublishedModel(
        model=checkpoint.model,
        recipe=checkpoint.recipe,
        lineage=state.lineage.without_paths(),
        step=state.step,
        epoch=state.epoch,
        num_processes=state.num_processes,
    )
    results = _results_of(checkpoint, source / "evaluation")
    card = model_card(published, results, name=out.resolve().name, licence=licence)
    published.save_pretrained(out, card=card)
    splits = tuple(found.origin.scored_on for found in results if not found.is_control)
    return Publication(folder=out, checkpoint=checkpoint.folder, splits=splits)


def model_card(published: PublishedModel, results: Sequence[Results], *, name: str, licence: str = "") -> str:
    """Return the model card in Markdown: a head for the Hub, use, scores with their rules, input, training, recipe.

    Args:
        published: The model.
        results: Its evaluations and controls.
        name: Name of the model.
        licence: Licence by the Hub's name; empty: the card names none.
    """
    recipe = without_paths(published.recipe)
    head = ModelCardData(
        model_name=name,
        library_name="refseg",
        pipeline_tag="image-segmentation",
        tags=["referring-image-segmentation", recipe.model.name],
        license=licence or None,
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type=found.origin.dataset,
                dataset_name=found.origin.dataset,
                dataset_split=found.origin.split,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(100 * value, 2),
            )
            for found in results
            if not found.is_control
            for metric, value in found.scores.by_name().items()
        ]
        or None,
    )
    return open_templates("refseg.apps").get_template("model_card.md.j2").render(
        head=Markup(head.to_yaml()),  # `to_yaml` quotes texts of others
        name=name,
        architecture=_ARCHITECTURES[recipe.model.name],
        recipe=recipe,
        recipe_toml=Markup(_toml(recipe)),
        published=published,
        results=results,
        mean=published.model.image_mean,
        std=published.model.image_std,
        num_parameters=sum(parameter.numel() for parameter in published.model.parameters()),
        describe_leaks=describe_leaks,
        license=licence,
        version=__version__,
    ) + "\n"  # fmt: skip


def _results_of(checkpoint: Checkpoint, folder: Path) -> list[Results]:
    """Read the evaluations of this checkpoint from a folder."""
    if not any(folder.glob("scores-*.json")):
        return []
    kept = []
    for results in load_results(folder):
        origin = results.origin
        scored = (origin.step, origin.lineage.dataset_digest) if isinstance(origin, OriginOfModel) else (None, "")
        if scored == (checkpoint.step, checkpoint.dataset_digest):
            kept.append(results)
        else:
            logger.warning(
                "%s: the scores of %s are of step %s, not of step %d that is published: left out",
                folder, origin.scored_on, scored[0], checkpoint.step,
            )  # fmt: skip
    return kept


def _toml(recipe: Recipe) -> str:
    """Return the recipe as TOML; settings without a value are left out, because TOML has no null."""
    lines = []
    for section, settings in recipe.to_dict().items():
        lines += ["", f"[{section}]"]
        # Strings, numbers, booleans and flat lists are written as in JSON, but without its surrogate pairs.
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items() if value is not None
        ]
    return "\n".join(lines[1:])
