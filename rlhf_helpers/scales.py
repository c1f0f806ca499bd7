"""The scales of the course: which models and data, and every hyperparameter, as dataclasses.

`smoke` runs every code path in seconds and claims nothing; `tiny` learns, on two CPU cores, in
minutes. A stage's config is all that its `train(config)` needs.
"""

from dataclasses import dataclass, field
from pathlib import Path

from rlhf_helpers.runs import data_dir, stage_dir

SCALES = ("smoke", "tiny")
TASKS = ("summarize",)


@dataclass(kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations."""

    model: str | Path  # what to start from: a folder, or a name of the hub
    data: Path  # demonstrations, JSONL
    output_dir: Path
    seed: int = 0
    epochs: float = 1.0
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    max_length: int = 512  # tokens of prompt and response
    instruction: str = ""  # goes in front of every prompt
    lora_rank: int = 0  # 0 trains all weights
    bits: int = 32  # 8 or 4 quantise the frozen weights; needs lora_rank
    save_steps: int = 50


@dataclass(kw_only=True)
class RewardConfig:
    """The reward model, on pairs of candidates or on rankings of K."""

    model: str | Path
    data: Path  # preferences or rankings, JSONL; its fields tell which
    output_dir: Path
    sft_model: str | Path  # whose samples on `prompts` are worth 0 on average, with deviation 1
    prompts: Path
    seed: int = 0
    pairs: int | None = None  # or rankings; None takes all
    objective: str = "order"  # "scores" learns the ranks as numbers, by regression
    epochs: float = 1.0
    batch_size: int = 32  # pairs or rankings
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.01
    center_rewards_coefficient: float = 0.001
    label_smoothing: float = 0.0  # share of labels believed to be wrong
    lora_rank: int = 0  # 0 trains all weights
    bits: int = 32  # 8 or 4 quantise the frozen weights, never the head; needs lora_rank
    max_length: int = 512  # tokens of prompt and candidate
    max_new_tokens: int = 48
    calibration_prompts: int = 256
    instruction: str = ""
    save_steps: int = 100

    def __post_init__(self) -> None:
        if self.objective not in ("order", "scores"):
            raise ValueError(f"objective is {self.objective!r}; choose 'order' or 'scores'")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; choose 0 to below 0.5")


@dataclass(kw_only=True)
class PPOConfig:
    """What `ppo.PPOTrainer` needs. Sources are given where each value acts, in `ppo`."""

    steps: int = 45  # the learning rate falls to a tenth over these
    warmup_steps: int = 5
    batch_size: int = 64  # responses a step
    samples_per_prompt: int = 4
    mini_batch_size: int = 32  # responses an optimiser step
    ppo_epochs: int = 2
    learning_rate: float = 2e-4
    value_learning_rate: float = 1e-3  # of the value head, which starts at zero
    kl_coef: float = 0.15
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    max_new_tokens: int = 48
    missing_eos_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mini_batch_size % self.samples_per_prompt or self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of mini_batch_size "
                f"{self.mini_batch_size}, and that of samples_per_prompt {self.samples_per_prompt}"
            )


@dataclass(kw_only=True)
class PPORunConfig(PPOConfig):
    """A whole PPO run: `PPOConfig`, and where everything is."""

    model: str | Path  # the SFT model: policy and reference
    reward_model: str | Path
    data: Path  # prompts, JSONL
    output_dir: Path
    instruction: str = ""
    save_steps: int = 20


StageConfig = SFTConfig | RewardConfig | PPORunConfig

SMOKE: dict[str, dict] = {
    "sft": {"epochs": 0.01, "batch_size": 8, "save_steps": 2},
    "reward": {"pairs": 32, "batch_size": 8, "max_new_tokens": 8, "calibration_prompts": 16,
               "save_steps": 2},
    "ppo": {"steps": 2, "batch_size": 8, "mini_batch_size": 4, "samples_per_prompt": 2,
            "max_new_tokens": 8, "save_steps": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """One scale, task and seed of the course: where its data lie and how its stages are set."""

    name: str = "tiny"
    task: str = "summarize"
    seed: int = 0
    live: bool = field(default=False, kw_only=True)  # True: what a notebook trains before you

    def __post_init__(self) -> None:
        for value, known, what in ((self.name, SCALES, "scale"), (self.task, TASKS, "task")):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")

    @property
    def base_model(self) -> Path:
        return data_dir() / "base_model"

    def data(self, name: str, split: str) -> Path:
        """The JSONL file of a data set, e.g. `data("preferences", "test")`."""
        return data_dir() / self.task / f"{name}_{split}.jsonl"

    def dir(self, stage: str) -> Path:
        """The folder of a stage's run: `sft`, `reward`, `ppo`."""
        return stage_dir(self.name, stage, self.task, self.seed, self.live)

    def config(self, stage: str, **changes: object) -> StageConfig:
        """The stage's config at this scale, with some fields changed."""
        values: dict = {"seed": self.seed, "output_dir": self.dir(stage)}
        values |= SMOKE[stage] if self.name == "smoke" else {}
        if stage == "sft":
            values |= {"model": self.base_model, "data": self.data("demonstrations", "train")}
            return SFTConfig(**values | changes)
        values |= {"model": self.dir("sft")}
        if stage == "reward":
            values |= {"data": self.data("preferences", "train"), "sft_model": self.dir("sft")}
            values |= {"prompts": self.data("prompts", "train")}
            return RewardConfig(**values | changes)
        values |= {"reward_model": self.dir("reward"), "data": self.data("prompts", "train")}
        return PPORunConfig(**values | changes)


# PPO settings that push hard enough to show reward hacking at `tiny`; its cure is `kl_coef` alone.
HACKING = {"kl_coef": 0.0, "learning_rate": 3e-4, "steps": 60}
