"""Tables that `plan` computes with: GPUs, shapes of models, and measured rates."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_helpers.runs import data_dir

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


class Measured(NamedTuple):
    """A measured rate: demonstrations, rankings or (in PPO) responses a second.

    It holds for these models, data and settings on this machine alone.
    """

    machine: str
    policy: str
    reward: str
    scale: str
    task: str
    stage: str
    rate: float


BASE = "data/base_model"
_TINY = (LAPTOP, BASE, BASE, "tiny", "summarize")
# Seed 0 on one core: 50, 37 and 68 seconds.
MEASURED = (
    Measured(*_TINY, "sft", 3000 / 50),
    Measured(*_TINY, "reward", 2000 / 37),
    Measured(*_TINY, "ppo", 45 * 64 / 68),
)
# Shares of a GPU's peak that the stages reach (what is computed twice counts twice), and seconds
# that a sampled token takes a layer, by the bits of the weights: as on an H200 (benchmarks/gpu.md),
# of its data sheet's peak. DPO is assumed to be like SFT, 4 bits like 8, 32 like 16, and a
# processor without a GPU to reach 0.3.
REACHED = {"sft": 0.19, "reward": 0.05, "ppo": 0.02, "dpo": 0.19}
REACHED_ON_CPU = 0.3
SECONDS_A_LAYER = {4: 4e-3, 8: 4e-3, 16: 0.5e-3, 32: 0.5e-3}


def name_of(model: str | Path) -> str:
    """A model's name among the measured rates."""
    folder = Path(model).resolve() == (data_dir() / "base_model").resolve()
    return BASE if folder else str(model)


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
