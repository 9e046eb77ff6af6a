"""Batch norms folded into the convolutions before them: the same function at inference, with less to do."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refseg.models.model import SegmentationModel


def fold_batch_norms(model: SegmentationModel) -> SegmentationModel:
    """Give a copy whose convolutions hold the batch norms that follow them.

    In evaluation a batch norm is a fixed scale and shift, so weights take it in; results differ by rounding alone.
    A norm is folded where it is the next child after its convolution, in modules that call their children in order,
    as all of ours and of timm's backbones do. An activation that a norm of timm brings with it stays.

    Args:
        model: In evaluation mode; left as it is.

    Raises:
        ValueError: If the model is in training mode, where a batch norm is no fixed function.
    """
    if model.training:
        raise ValueError("found a model in training mode, expected one in evaluation mode: call model.eval() first")
    folded = copy.deepcopy(model)
    with torch.no_grad():
        for parent in list(folded.modules()):
            children = list(parent.named_children())
            for (conv_name, conv), (norm_name, norm) in pairwise(children):
                if (
                    isinstance(conv, nn.Conv2d)
                    and isinstance(norm, _BatchNorm)
                    and conv.out_channels == norm.num_features
                ):
                    setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                    setattr(parent, norm_name, _what_is_left(norm))
    return folded


def _what_is_left(norm: _BatchNorm) -> nn.Module:
    """The activation inside timm's batch norms, or nothing."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()
