"""Folders that hold a PEFT adapter and not a whole model."""

import logging
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

logger = logging.getLogger(__name__)


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter and not a whole model."""
    return (Path(path) / "adapter_config.json").is_file()


def merged_with_base(path: str | Path, **options: Any) -> PreTrainedModel:
    """The base model of an adapter's folder with the adapter merged, as one line of the log says.

    `options` are those of `from_pretrained`. Raises ValueError for 4 and 8 bits: weights so coarse
    cannot take up an adapter.
    """
    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if "quantization_config" in options:
        raise ValueError(
            f"{path} is an adapter on {base}, which cannot be merged into weights of 8 or 4 bits: "
            "load it with 32 bits (models.load_policy), save that, and name the new folder"
        )
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    logger.warning("%s is an adapter: it is merged into its base model, %s", path, base)
    return PeftModel.from_pretrained(model, path).merge_and_unload().requires_grad_(True)
