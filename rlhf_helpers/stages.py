"""The stages: what each is called, how it is set, what it starts from, and what runs it.

To add a stage, write a module with `train(config, resume) -> Result`, a config, and an entry here:
the command line, `Scale.config`, `plan` and the tests of all stages take it from this table. The
stages themselves are imported only when they run.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from rlhf_helpers.configs import (
    DPOConfig,
    GRPOConfig,
    PPORunConfig,
    RestConfig,
    RewardConfig,
    RLAIFConfig,
    RLOOConfig,
    SFTConfig,
    StageConfig,
)

if TYPE_CHECKING:
    from rlhf_helpers.scales import Scale
    from rlhf_helpers.training import Result


# Settings of PPO that act on a critic alone, or (gamma) on its returns.
OF_THE_CRITIC = (
    "critic",
    "value_learning_rate",
    "value_head_std",
    "gamma",
    "lam",
    "cliprange_value",
    "vf_coef",
)


@dataclass(frozen=True)
class Stage:
    """One entry of the table."""

    name: str
    help: str  # one sentence for the command line
    config: type[StageConfig]
    module: str  # with its `train(config, resume)`
    reads: str  # kind of the records in `config.data`: demonstrations, preferences or prompts
    inputs: Callable[["Scale"], dict[str, Any]]  # models and data that it starts from at a scale
    settings_of: str = ""  # another stage, whose settings at a scale hold for this one too
    runs: tuple[str, ...] = ()  # other stages that it consists of
    without: tuple[str, ...] = ()  # settings of its config that do nothing in it


def _sft_inputs(scale: "Scale") -> dict[str, Any]:
    inputs = {"model": scale.base_model, "data": scale.source("demonstrations", "train")}
    if scale.needs_gpu:
        inputs["eval_data"] = scale.source("demonstrations", "validation")
    return inputs


def _comparisons(scale: "Scale") -> dict[str, Any]:
    """The little world's rankings, or of `assistant` the pairs, with held-out ones."""
    if scale.task == "assistant":
        train, test = (scale.source("preferences", split) for split in ("train", "test"))
        return {"data": train, "eval_data": test}
    return {"data": scale.source("rankings", "train")}


def _dpo_inputs(scale: "Scale") -> dict[str, Any]:
    return {"model": scale.dir("sft"), **_comparisons(scale)}


def _reward_inputs(scale: "Scale") -> dict[str, Any]:
    return {
        "model": scale.reward_base_model,
        "sft_model": scale.dir("sft"),
        "prompts": scale.source("prompts", "train"),
        **_comparisons(scale),
    }


def _rest_inputs(scale: "Scale") -> dict[str, Any]:
    prompts = scale.source("prompts", "train")
    return {"model": scale.dir("sft"), "reward_model": scale.dir("reward"), "data": prompts}


def _ppo_inputs(scale: "Scale") -> dict[str, Any]:
    inputs = _rest_inputs(scale)
    if scale.task != "assistant":
        inputs["ptx_data"] = scale.data("pretraining", "train")
    return inputs


def _rlaif_inputs(scale: "Scale") -> dict[str, Any]:
    pairs = scale.source("preferences", "train")
    return _ppo_inputs(scale) | {
        "preferences": pairs,
        "reward_model": scale.dir("rlaif_reward"),
        "reward": scale.config("reward", data=pairs, pairs=None),
    }


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "sft",
            "fine-tune the base model on demonstrations",
            SFTConfig,
            "rlhf_helpers.sft",
            "demonstrations",
            _sft_inputs,
        ),
        Stage(
            "reward",
            "train the reward model on preferences; needs sft",
            RewardConfig,
            "rlhf_helpers.reward_model",
            "preferences",
            _reward_inputs,
        ),
        Stage(
            "ppo",
            "improve the SFT model by PPO against the reward model; needs sft and reward",
            PPORunConfig,
            "rlhf_helpers.ppo",
            "prompts",
            _ppo_inputs,
        ),
        Stage(
            "rloo",
            "the same without a critic: the other answers to a prompt are the baseline (RLOO)",
            RLOOConfig,
            "rlhf_helpers.ppo",
            "prompts",
            _ppo_inputs,
            settings_of="ppo",
            runs=("ppo",),
            without=OF_THE_CRITIC,
        ),
        Stage(
            "grpo",
            "the same with the mean and the deviation of all answers to it (GRPO, Dr. GRPO)",
            GRPOConfig,
            "rlhf_helpers.ppo",
            "prompts",
            _ppo_inputs,
            settings_of="ppo",
            runs=("ppo",),
            without=OF_THE_CRITIC,
        ),
        Stage(
            "dpo",
            "improve the SFT model on preferences themselves, by DPO; needs sft",
            DPOConfig,
            "rlhf_helpers.dpo",
            "preferences",
            _dpo_inputs,
        ),
        Stage(
            "rest",
            "improve the SFT model by imitating its own best samples (ReST); needs sft and reward",
            RestConfig,
            "rlhf_helpers.rest",
            "prompts",
            _rest_inputs,
            runs=("sft",),
        ),
        Stage(
            "rlaif",
            "let an AI label the preferences, then train reward model and PPO; needs sft",
            RLAIFConfig,
            "rlhf_helpers.rlaif",
            "prompts",
            _rlaif_inputs,
            settings_of="ppo",
            runs=("reward", "ppo"),
        ),
    )
}


def train_stage(stage: str, config: StageConfig, resume: bool = False) -> "Result":
    """Run the stage of this name: `train(config, resume)` of its module.

    A process that a launcher has started joins the others first, so that each takes its own device.
    """
    from rlhf_helpers import processes

    processes.start()
    return importlib.import_module(STAGES[stage].module).train(config, resume)


def train_missing(scale: "Scale", *stages: str) -> None:
    """Train those of `stages`, with the scale's settings, that have no result in `runs/` yet.

    Of several processes that miss the same stage one trains it, and the others wait for it. Raises
    ValueError for a result of another version of the data.
    """
    from rlhf_helpers.training.checkpoints import check_data, status

    for stage in stages:
        folder = scale.dir(stage)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{stage}.lock")):
            if status(folder) != "complete":
                train_stage(stage, scale.config(stage))
            else:
                check_data(folder)
