"""The scales of the course: which models, data and hyperparameters every stage runs with.

`smoke` runs every code path in seconds and claims nothing; `tiny` learns, on two CPU cores, in
minutes; `small` is for one GPU of 16 GB, about an hour; `full` has the settings of the courses
that this one grew from, for GPUs of 40 to 80 GB.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_helpers.configs import StageConfig
from rlhf_helpers.configs.base import LARGEST_SEED
from rlhf_helpers.configs.settings import Setting
from rlhf_helpers.runs import data_dir, stage_dir
from rlhf_helpers.stages import STAGES

SCALES = ("smoke", "tiny", "small", "full")
LITTLE_WORLD = ("summarize", "autocomplete")  # tasks whose true preferences are known
SEED = Setting("of all random numbers", at_least=0, at_most=LARGEST_SEED)
TASKS = (*LITTLE_WORLD, "assistant")

# The data sets of the task `assistant`, on Deep Lake; `hf://` names serve as well, see `streams`.
# OpenOrca (Lian et al. 2023), hh-rlhf (Bai et al. 2022), Alpaca-OrcaChat.
ASSISTANT_DATA = {
    "demonstrations_train": "al://genai360/OpenOrca-1M-train-set",
    "demonstrations_validation": "al://genai360/OpenOrca-1M-valid-set",
    "preferences_train": "al://genai360/Anthropic-hh-rlhf-train-set",
    "preferences_test": "al://genai360/Anthropic-hh-rlhf-test-set",
    "preferences_validation": "al://genai360/Anthropic-hh-rlhf-test-set",  # there is no third one
    "prompts_train": "al://genai360/Alpaca-OrcaChat",
    "prompts_test": "al://genai360/OpenOrca-1M-valid-set",  # Alpaca-OrcaChat has one split only
    "prompts_validation": "al://genai360/OpenOrca-1M-valid-set",
}

# QLoRA (Dettmers et al. 2023, arXiv:2305.14314): 4-bit NF4 weights, rank 16, alpha 32.
QLORA = {"bits": 4, "lora_rank": 16, "lora_dropout": 0.05, "gradient_checkpointing": True}


def critic_free(**settings: int) -> dict[str, Any]:
    """What RLOO and GRPO share at `full`: one gradient step a rollout, on all of it.

    So it is in Shao et al. 2024 (arXiv:2402.03300, section 4.2), the source of GRPO's kl_coef, and
    by default in TRL 1.16, that of RLOO's. Ten times their rate: only an adapter is trained.
    """
    found = {"ppo_epochs": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-5}
    found |= {"adaptive_kl": False, "min_new_tokens": 0, "draw_lengths": False}
    return found | {"max_new_tokens": 128, "mini_batch_size": settings["batch_size"]} | settings


SMOKE: dict[str, dict] = {
    "sft": {"epochs": 0.01, "batch_size": 8, "save_steps": 2},
    "reward": {
        "head": "answer_tokens",
        "pairs": 32,
        "max_new_tokens": 8,
        "calibration_prompts": 16,
        "save_steps": 2,
    },
    "dpo": {"pairs": 32, "batch_size": 8, "save_steps": 2},
    "ppo": {
        "steps": 2,
        "batch_size": 8,
        "mini_batch_size": 4,
        "samples_per_prompt": 2,
        "max_new_tokens": 8,
        "save_steps": 1,
    },
    "rest": {"grow_prompts": 8, "batch_size": 8},
    "rlaif": {"labels": 32},
}

# Of the head `answer_tokens`, at every scale; passes over its features cost a few seconds.
ANSWER_TOKENS = {
    "head": "answer_tokens",
    "epochs": 6,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}

# DPO learns from a third of the rankings, best against worst, further from SFT than by default.
TINY: dict[str, dict] = {
    "reward": {"head": "answer_tokens"},
    "dpo": {"pairs": 640, "beta": 0.5, "learning_rate": 6e-4},
    "rlaif": {"steps": 20},
}

# The settings of Activeloop's course on RLHF (LLM training in production), which used eight A100.
# Of its numbers these became others of ours:
#
# | the course                                         | here                               |
# |----------------------------------------------------|------------------------------------|
# | PPO steps=10_000: samples, so ceil(10,000 / 32)    | steps 313: rollouts of 32          |
# | PPO mini_batch_size=4 on each of eight GPUs        | mini_batch_size 32, of all GPUs    |
# | PPO load_in_8bit                                   | bits 16: nine times as fast decode |
# | SFT and reward model: batches of a GPU             | batch_size of all GPUs             |
# | reward scored in batches of 16                     | as memory allows                   |
#
# `gradient_accumulation_steps` divides a mini-batch further, for memory: one, two, four or eight
# GPUs can share it. Frozen weights of 8 bits decode at 97 ms a token on an H200, those of 16 bits
# at 11, with 3 GB more.
FULL: dict[str, dict] = {
    "sft": {
        **QLORA,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "weight_decay": 0.05,
        "max_length": 2048,
        "packing": True,
        "save_steps": 2000,
    },
    "reward": {
        "epochs": 20,
        "batch_size": 24,
        "learning_rate": 2e-5,
        "weight_decay": 0.001,
        "warmup_steps": 0,
        "max_length": 512,
        "max_new_tokens": 128,
        "save_steps": 500,
    },
    "ppo": {
        "steps": 313,
        "learning_rate": 1.41e-5,
        "value_learning_rate": 1.41e-5,
        "warmup_steps": 0,
        "batch_size": 32,
        "samples_per_prompt": 1,
        "mini_batch_size": 32,
        "gradient_accumulation_steps": 4,
        "ppo_epochs": 4,
        "kl_coef": 0.2,
        "adaptive_kl": True,
        "kl_target": 6.0,
        "kl_horizon": 10_000,
        "min_new_tokens": 32,
        "draw_lengths": True,
        "max_new_tokens": 400,
        "max_prompt_length": 400,
        "bits": 16,
        "lora_rank": 16,
        "save_steps": 50,
    },
    # That course has neither RLOO nor GRPO. There are as many samples as in its PPO; four a prompt
    # are of Ahmadian et al. 2024 (arXiv:2402.14740), eight of TRL 1.16 (Shao et al. take 64).
    "rloo": {**critic_free(steps=157, batch_size=64), "samples_per_prompt": 4, "kl_coef": 0.05},
    "grpo": {**critic_free(steps=79, batch_size=128), "samples_per_prompt": 8, "kl_coef": 0.04},
    # That course has no DPO: beta and batch are of Rafailov et al. 2023 (arXiv:2305.18290,
    # appendix B), the learning rate is ten times theirs, since only an adapter is trained.
    "dpo": {
        **QLORA,
        "pairs": 20_000,
        "beta": 0.1,
        "batch_size": 64,
        "learning_rate": 1e-5,
        "warmup_steps": 150,
        "max_length": 512,
        "save_steps": 500,
    },
    # Ours: that course has neither. The rest of RLAIF is as in `ppo`.
    "rest": {
        **QLORA,
        "grow_prompts": 5_000,
        "samples_per_prompt": 8,
        "max_new_tokens": 128,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "warmup_steps": 20,
        "max_length": 512,
        "save_steps": 500,
    },
    "rlaif": {"labels": 20_000, "labeller": "Qwen/Qwen2.5-1.5B-Instruct"},
}

# Ours: less of everything, for a GPU of 16 GB. No quality is claimed before it has been measured.
SMALL: dict[str, dict] = {
    "sft": {"demonstrations": 20_000, "epochs": 1, "max_length": 1024, "save_steps": 500},
    "reward": {"pairs": 20_000, "epochs": 1, "batch_size": 16, "max_new_tokens": 64},
    "ppo": {
        "steps": 200,
        "samples_per_prompt": 4,
        "mini_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "bits": 8,
        "ppo_epochs": 2,
        "min_new_tokens": 0,
        "draw_lengths": False,
        "max_new_tokens": 64,
        "max_prompt_length": 256,
    },
    "rloo": {"batch_size": 32, "mini_batch_size": 32, "max_new_tokens": 64},
    "grpo": {"batch_size": 64, "mini_batch_size": 64, "max_new_tokens": 64},
    "dpo": {"pairs": 5_000, "batch_size": 16, "warmup_steps": 50},
    "rest": {"grow_prompts": 500, "samples_per_prompt": 4, "max_new_tokens": 64, "batch_size": 16},
    "rlaif": {"labels": 5_000},
}
SMALL = {stage: FULL[stage] | SMALL[stage] for stage in FULL}

SETTINGS = {"smoke": SMOKE, "tiny": TINY, "small": SMALL, "full": FULL}
# What stages start from: a policy, and a reward model. None: the base model that `data/` has, and
# the SFT model with a new head.
POLICIES = {"small": "facebook/opt-350m", "full": "facebook/opt-1.3b"}
REWARD_MODELS = {"small": "microsoft/deberta-v3-small", "full": "microsoft/deberta-v3-base"}


def own_task(scale: str) -> str:
    """The task of a scale for which none is given: the little world, or the real data sets."""
    return "assistant" if scale in POLICIES else "summarize"


@dataclass(frozen=True)
class Scale:
    """One scale, task and seed of the course: where its data lie and how its stages are set."""

    name: str = "tiny"
    task: str = ""  # the scale's own, see `own_task`
    seed: int = 0
    live: bool = field(default=False, kw_only=True)  # True: what a notebook trains before you

    def __post_init__(self) -> None:
        if not self.task:
            object.__setattr__(self, "task", own_task(self.name))
        for value, known, what in ((self.name, SCALES, "scale"), (self.task, TASKS, "task")):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
        if not SEED.allows(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}: it must be {SEED.wanted(int)}")
        if self.task == "assistant" and self.name not in POLICIES:
            raise ValueError(
                f"scale {self.name!r} speaks the little world's language only: choose scale small "
                "or full for the task 'assistant', or the task summarize or autocomplete"
            )

    @property
    def base_model(self) -> str | Path:
        """What SFT starts from: a folder, or a name of the hub."""
        return POLICIES.get(self.name, data_dir() / "base_model")

    @property
    def reward_base_model(self) -> str | Path:
        """What the reward model starts from: the SFT model, or a name of the hub."""
        return REWARD_MODELS.get(self.name, self.dir("sft"))

    @property
    def needs_gpu(self) -> bool:
        """Whether the scale trains models of the hub, on GPUs."""
        return self.name in POLICIES

    def data(self, name: str, split: str) -> Path:
        """The JSONL file of a data set of the little world, e.g. `data("preferences", "test")`.

        Its tasks start from the same base model, so they share its pretraining documents.
        """
        task = "summarize" if name == "pretraining" else self.task
        return data_dir() / task / f"{name}_{split}.jsonl"

    def source(self, name: str, split: str) -> str | Path:
        """A data set to train on or to measure with: `data`, or of `assistant` a named source."""
        if self.task == "assistant":
            return ASSISTANT_DATA[f"{name}_{split}"]
        return self.data(name, split)

    def dir(self, stage: str) -> Path:
        """The folder of a stage's run, e.g. `dir("ppo")`."""
        return stage_dir(self.name, stage, self.task, self.seed, self.live)

    def config(self, stage: str, **changes: object) -> StageConfig:
        """The stage's config at this scale, with some fields changed.

        A reward model with the head `answer_tokens` reads with the SFT model, and has settings of
        its own.
        Raises ValueError for an unknown stage, or a value that the config does not take.
        """
        if stage not in STAGES:
            raise ValueError(f"unknown stage {stage!r}: choose one of {', '.join(STAGES)}")
        found, at_scale = STAGES[stage], SETTINGS[self.name]
        values: dict = {"seed": self.seed, "output_dir": self.dir(stage)}
        values |= at_scale.get(found.settings_of, {}) | at_scale.get(stage, {})
        values |= found.inputs(self)
        if stage == "reward" and changes.get("head", values.get("head")) == "answer_tokens":
            values |= ANSWER_TOKENS | {"model": self.dir("sft")}
        return found.config(**values | changes)


# PPO settings that push hard enough to show reward hacking at `tiny`, against a reward model that
# does not read; one cure is `kl_coef` alone. Two answers a prompt bring more prompts into a batch.
HACKING = {
    "kl_coef": 0.0,
    "learning_rate": 4e-4,
    "steps": 36,
    "batch_size": 64,
    "mini_batch_size": 32,
    "samples_per_prompt": 2,
}
