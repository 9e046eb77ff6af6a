"""Models compute mask logits from images and token ids. A recipe's `[model]` section defines their parts.

The modules, in the order in which data passes through them:

    image_encoder      encodes images as feature maps at strides 8, 16 and 32
    text_encoder       encodes token ids as word features and one sentence feature
    neck               fuses the three maps into one at stride 16; in LTS and CRIS the sentence gates it
    attention          multi-head attention, used by all models
    mask_decoder       lets pixel features attend to tokens, and turns them into mask logits
    model              defines the interface of a model, and the states that its two encoders pass to its decoder
    fcnet crformer lts cris    implement one paper each

    weight_files       lists published weight files, and writes the project's own
    clip_archive       reads OpenAI's TorchScript archives without running their code
    convert            converts weight files of other projects to safetensors
    pretrained         loads such a file into the encoders of a model
    hub_folder         writes and reads a published model's folder
    text_cache         encodes each distinct sentence once
    folding            folds batch norms into convolutions for inference
    cost               counts parameters and multiply-accumulates
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
        input_size: `(height, width)` in pixels for which the model is built, multiples of 32.

    Raises:
        RecipeError: If the model's parts do not fit each other.
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
    raise RecipeError(f"model.name: found {config.name}, which has no implementation")
