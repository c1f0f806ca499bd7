"""What `plan` knows beforehand: GPUs, data sets, shapes of models, and rates that were measured."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_helpers import scales
from rlhf_helpers.stages import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Machine(NamedTuple):
    """One processor: its memory in GiB, and peak TFLOP/s in 16 bits (dense) and in float32."""

    memory: float
    half: float
    single: float


# NVIDIA's data sheets: T4, L4 Tensor Core GPU, A10, A100 (SXM), H100 (SXM), H200; half of what
# they state with sparsity. The laptop's 91 GFLOP/s a core are measured: benchmarks/ppo_step.md.
LAPTOP = "laptop"
GPUS = {
    "T4": Machine(16, 65, 8.1),
    "L4": Machine(24, 121, 30.3),
    "A10": Machine(24, 125, 31.2),
    "A100 40GB": Machine(40, 312, 19.5),
    "A100 80GB": Machine(80, 312, 19.5),
    "H100 80GB": Machine(80, 989, 67),
    "H200": Machine(141, 989, 67),
    LAPTOP: Machine(math.nan, 0.18, 0.18),  # its memory is asked for
}
OWN_GPU = {"smoke": LAPTOP, "tiny": LAPTOP, "small": "T4", "full": "A100 40GB"}


class Data(NamedTuple):
    """A data set: records, mean and longest length of prompts and of responses in tokens."""

    records: int
    prompt: int
    response: int
    longest_prompt: int = 2048
    longest_response: int = 2048


# The little world's own are counted. The others are approximate: records by their data cards
# (OpenOrca's subset by its name), lengths of hh-rlhf from its bytes at 4.5 a token; those of
# OpenOrca and of Alpaca-OrcaChat are assumed.
DATA = {
    ("summarize", "demonstrations"): Data(4000, 89, 17, 124, 52),
    ("summarize", "preferences"): Data(2500, 89, 17, 121, 52),
    ("summarize", "prompts"): Data(2000, 89, 17, 124, 52),
    ("autocomplete", "demonstrations"): Data(2500, 56, 28, 79, 60),
    ("autocomplete", "preferences"): Data(1000, 56, 28, 71, 57),
    ("autocomplete", "prompts"): Data(1000, 56, 28, 70, 60),
    ("assistant", "demonstrations"): Data(1_000_000, 250, 200),
    ("assistant", "preferences"): Data(160_800, 190, 35),
    ("assistant", "prompts"): Data(52_000, 200, 200),
}

# Samples a second (demonstrations, rankings, PPO's responses) by machine, scale, task and stage.
# Those of the laptop: seed 0 on two idle cores, 52, 84 and 76 seconds.
MEASURED = {
    (LAPTOP, "tiny", "summarize", "sft"): 4000 / 52,
    (LAPTOP, "tiny", "summarize", "reward"): 2500 / 84,
    (LAPTOP, "tiny", "summarize", "ppo"): 45 * 64 / 76,
}

# The `config.json` of these models, as far as it differs from the defaults of transformers.
_OPT = {"num_hidden_layers": 24, "dropout": 0.1}
_DEBERTA = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
SHAPES: dict[str, tuple[str, dict]] = {
    "facebook/opt-350m": (
        "opt",
        _OPT
        | {
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_attention_heads": 16,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
        },
    ),
    "facebook/opt-1.3b": (
        "opt",
        _OPT
        | {
            "hidden_size": 2048,
            "ffn_dim": 8192,
            "num_attention_heads": 32,
        },
    ),
    "microsoft/deberta-v3-small": ("deberta-v2", _DEBERTA | {"num_hidden_layers": 6}),
    "microsoft/deberta-v3-base": ("deberta-v2", _DEBERTA | {"num_hidden_layers": 12}),
}


def shape_of(name: str | Path) -> "PreTrainedConfig":
    """The shape of a known model, or of a folder or another model of the hub.

    Raises ValueError for what cannot be reached.
    """
    from transformers import AutoConfig

    if str(name) in SHAPES:
        kind, facts = SHAPES[str(name)]
        return AutoConfig.for_model(kind, **facts)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: no folder with a config.json, and the hub cannot be reached or has no such "
            f"model. Set HF_HUB_OFFLINE=0, or choose one of {', '.join(SHAPES)}"
        ) from error


def data_of(scale: scales.Scale, stage: str) -> Data:
    """What a stage reads."""
    return DATA[scale.task, STAGES[stage].reads]


def texts_of(scale: scales.Scale, stage: str) -> int:
    """How many answers a sample has: 2 in a pair, and in the little world's rankings 4."""
    return {"reward": 2 if scale.task == "assistant" else 4, "dpo": 2}.get(stage, 1)
