"""The splits that a recipe names, looked for before anything is read of them."""

from refseg.config import Recipe
from refseg.dataset.descriptor import load_descriptor, unknown_split
from refseg.errors import RecipeError


def refuse_unknown_splits(recipe: Recipe) -> None:
    """Refuse a split to train or validate on that its dataset has not.

    Raises:
        DatasetError: If a dataset is unfinished or damaged.
        RecipeError: With one line per such split.
    """
    data = recipe.data
    asked = [("train_split", data.root, data.train_split, "name one with data.train_split=")]
    if recipe.train.val_every_epochs:
        hint = "name one with data.val_split=, or train without validation: train.val_every_epochs=0"
        asked.append(("val_split", data.val_root or data.root, data.val_split, hint))
    mistakes = []
    for key, folder, split, hint in asked:
        descriptor = load_descriptor(folder)
        if split not in descriptor.splits:
            mistakes.append(f"data.{key}: {unknown_split(folder, descriptor, split)}; {hint}")
    if mistakes:
        raise RecipeError("\n".join(mistakes))
