"""What bitsandbytes must be told before its weights of 8 and 4 bits can be trained on."""

import logging

from transformers import PreTrainedModel

from rlhf_helpers.extras import needs_extra

logger = logging.getLogger(__name__)

PACKS = "support_avx512bf16_for_cpu"  # of bitsandbytes' Linear4bit


def import_bitsandbytes() -> None:
    """Check that bitsandbytes is installed, and mute one of its warnings.

    It warns at every product of 8-bit weights that it computes in float16.
    """
    with needs_extra("course"):
        import bitsandbytes  # noqa: F401
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_4_bits_trainable(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from packing 4-bit weights for inference, after which none can train.

    It packs them at the first inference on a CPU with AVX512-BF16, unless this attribute of the
    layer, which it documents nowhere, says that the CPU has none.
    """
    layers = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    for layer in layers:
        if hasattr(layer, PACKS):
            setattr(layer, PACKS, False)
    if layers and not hasattr(layers[0], PACKS):
        logger.warning(
            "this bitsandbytes has no %s: if training in 4 bits fails with a missing gradient, "
            "use 8 bits or another version",
            PACKS,
        )
