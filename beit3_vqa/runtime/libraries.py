"""The names that we use of timm and torchscale, imported without the warnings that only they can mend.

timm 0.6.13, which torchscale pins, scripts its activations on import. Newer versions of torch print a deprecation
warning for that at the start of every run. torchscale imports timm by a path that newer versions of timm deprecate.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    from timm.data import Mixup, auto_augment, create_transform
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import is_model, register_model

    try:
        from timm.layers import trunc_normal_
    except ImportError:  # before timm 0.9
        from timm.models.layers import trunc_normal_

    # Only from here on, so that an import of ours by that path is still heard.
    warnings.filterwarnings("ignore", message="Importing from timm.models.layers is deprecated")
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

__all__ = [
    "BEiT3",
    "EncoderConfig",
    "IMAGENET_DEFAULT_MEAN",
    "IMAGENET_DEFAULT_STD",
    "Mixup",
    "auto_augment",
    "create_transform",
    "is_model",
    "register_model",
    "trunc_normal_",
]
