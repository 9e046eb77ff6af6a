"""Models: images and token ids to mask logits, composed from a recipe's `[model]` section.

In the order in which data passes through them:

    image_encoder      images to feature maps at strides 8, 16 and 32
    text_encoder       token ids to word features and one sentence feature
    neck               the three maps to one at stride 16, gated by the sentence in LTS and CRIS
    attention          the multi-head attention that all models use
    mask_decoder       pixel features attend to tokens, then become mask logits
    model              the interface of a model, and the states that its two sides give to its decoder
    fcnet crformer lts cris    one paper per file

    weight_files clip_archive convert    other projects' weight files, and what they become here
    pretrained         encoders start from such a file
    ancestry hub_folder    a model that weights come from; a published model's folder
    text_cache folding cost    sentences encoded once; batch norms folded for inference; counts
"""

from refseg.errors import RecipeError
from refseg.model_config import ModelConfig
from refseg.models.crformer import build_crformer
from refseg.models.cris import build_cris
from refseg.models.fcnet import build_fcnet
from refseg.models.lts import build_lts
from refseg.models.model import SegmentationModel


def build_model(config: ModelConfig, *, input_size: tuple[int, int]) -> SegmentationModel:
    """Build a model with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` the model is made for, multiples of 32.

    Raises:
        RecipeError: If its parts do not fit each other.
    """
    match config.name:
        case "fcnet":
            return build_fcnet(config, input_size=input_size)
        case "lts":
            return build_lts(config, input_size=input_size)
        case "cris":
            return build_cris(config, input_size=input_size)
        case "crformer":
            return build_crformer(config, input_size=input_size)
    raise RecipeError(f"model.name: {config.name} is not built yet")
