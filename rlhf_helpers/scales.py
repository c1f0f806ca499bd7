"""The scales of the course: which models and data, and every hyperparameter, as dataclasses.

`smoke` runs every code path in seconds and claims nothing; `tiny` learns, on two CPU cores, in
minutes. A stage's config is all that its `train(config)` needs.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_helpers.runs import data_dir, stage_dir

SCALES = ("smoke", "tiny")
TASKS = ("summarize", "autocomplete")
CRITICS = ("shared", "separate")
LOSS_TYPES = ("sigmoid", "ipo")


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
    batch_size: int = 8  # pairs or rankings
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
        if self.calibration_prompts < 2:
            raise ValueError(
                f"calibration_prompts is {self.calibration_prompts}: scores have no deviation "
                "with fewer than 2"
            )


@dataclass(kw_only=True)
class DPOConfig:
    """Direct preference optimisation: the policy from preferences, without a reward model."""

    model: str | Path  # the SFT model: policy and reference
    data: Path  # preferences or rankings, JSONL; its fields tell which
    output_dir: Path
    seed: int = 0
    pairs: int | None = None  # or rankings; None takes all
    loss_type: str = "sigmoid"  # one of LOSS_TYPES
    # The price of a nat of KL in the objective; of "ipo" its tau. With 0.1, usual for large models
    # at far lower learning rates, `tiny` ends 4 nats away from SFT with half of the gain lost.
    beta: float = 1.0
    label_smoothing: float = 0.0  # share of labels believed to be wrong: conservative DPO
    epochs: float = 1.0
    batch_size: int = 32  # pairs
    learning_rate: float = 3e-4
    warmup_steps: int = 10
    max_length: int = 512  # tokens of prompt and answer
    instruction: str = ""
    lora_rank: int = 0  # 0 trains all weights
    bits: int = 32  # 8 or 4 quantise the frozen weights; needs lora_rank
    save_steps: int = 50

    def __post_init__(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"loss_type is {self.loss_type!r}; choose one of {', '.join(LOSS_TYPES)}"
            )
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta is {self.beta}: it must be a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; choose 0 to below 0.5")
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError("label_smoothing belongs to the sigmoid loss: leave it 0 for ipo")
        if self.bits != 32 and not self.lora_rank:
            raise ValueError(f"weights of {self.bits} bits cannot be trained: set lora_rank too")


@dataclass(kw_only=True)
class PPOConfig:
    """What `ppo.PPOTrainer` needs. Sources are given where each value acts, in `ppo`.

    With several processes, each takes its share of a batch and of its mini-batches.
    """

    steps: int = 45  # the learning rate falls to a tenth over these
    warmup_steps: int = 5
    batch_size: int = 64  # responses a step
    samples_per_prompt: int = 4
    mini_batch_size: int = 32  # responses an optimiser step
    gradient_accumulation_steps: int = 1  # parts of a mini-batch, one after the other: less memory
    ppo_epochs: int = 2
    learning_rate: float = 2e-4
    value_learning_rate: float = 1e-3  # of the value head, which starts at zero, or whole critic
    critic: str = "shared"  # one of CRITICS: the value head reads the policy's states, or its own
    kl_coef: float = 0.15  # price of a nat of KL; with adaptive_kl only the first one
    adaptive_kl: bool = False  # kl_coef follows the measured KL
    kl_target: float = 6.0  # nats a response that adaptive_kl holds
    kl_horizon: float = 10_000  # responses that it takes to react
    target_kl: float | None = None  # nats a token: stop updating at 1.5 times this; None never does
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    min_new_tokens: int = 0  # above 0, lengths are drawn from here to max_new_tokens: no EOS stop
    max_new_tokens: int = 48
    missing_eos_penalty: float = 1.0  # off the score of a cut response; not where lengths are drawn
    score_clip: float | None = None  # scores beyond +- this are cut to it
    ptx_coef: float = 0.0  # weight of the pretraining loss (PPO-ptx), of a document a prompt
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        group = self.samples_per_prompt * self.gradient_accumulation_steps
        if self.mini_batch_size % self.samples_per_prompt or self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of mini_batch_size "
                f"{self.mini_batch_size}, and that of samples_per_prompt {self.samples_per_prompt}"
            )
        if self.mini_batch_size % group:
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} must be a multiple of {group}: "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} times "
                f"samples_per_prompt {self.samples_per_prompt}"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens "
                f"{self.max_new_tokens}"
            )
        if self.critic not in CRITICS:
            raise ValueError(f"unknown critic {self.critic!r}: choose one of {', '.join(CRITICS)}")
        if self.adaptive_kl and not self.kl_coef:
            raise ValueError("adaptive_kl multiplies kl_coef: start it above 0")

    def _check_numbers(self) -> None:
        """Raise ValueError for the first number out of its range."""
        counts = ("steps", "batch_size", "samples_per_prompt", "mini_batch_size", "ppo_epochs",
                  "gradient_accumulation_steps", "max_new_tokens")  # fmt: skip
        positive = ("temperature", "cliprange", "cliprange_value", "max_grad_norm", "kl_target",
                    "kl_horizon", "target_kl", "score_clip")  # fmt: skip
        not_negative = ("warmup_steps", "learning_rate", "value_learning_rate", "kl_coef",
                        "vf_coef", "min_new_tokens", "missing_eos_penalty",
                        "ptx_coef")  # fmt: skip
        for names, fits, what in (
            (counts, lambda value: value >= 1, "at least 1"),
            (positive, lambda value: 0 < value < math.inf, "a number above 0"),
            (not_negative, lambda value: 0 <= value < math.inf, "0 or a number above it"),
            (("gamma", "lam"), lambda value: 0 <= value <= 1, "a number from 0 to 1"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ValueError(f"{name} is {value}: it must be {what}")


@dataclass(kw_only=True)
class PPORunConfig(PPOConfig):
    """A whole PPO run: `PPOConfig`, and where everything is."""

    model: str | Path  # the SFT model: policy and reference
    reward_model: str | Path
    data: Path  # prompts, JSONL
    output_dir: Path
    ptx_data: Path | None = None  # pretraining documents, JSONL; read if there is a ptx_coef
    instruction: str = ""
    lora_rank: int = 0  # 0 trains all weights
    bits: int = 32  # 8 or 4 quantise the frozen weights; needs lora_rank
    save_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ptx_coef and self.ptx_data is None:
            raise ValueError("ptx_coef needs pretraining documents: set ptx_data")
        if self.bits != 32 and not self.lora_rank:
            raise ValueError(f"weights of {self.bits} bits cannot be trained: set lora_rank too")


StageConfig = SFTConfig | RewardConfig | DPOConfig | PPORunConfig

SMOKE: dict[str, dict] = {
    "sft": {"epochs": 0.01, "batch_size": 8, "save_steps": 2},
    "reward": {"pairs": 32, "batch_size": 8, "max_new_tokens": 8, "calibration_prompts": 16,
               "save_steps": 2},
    "dpo": {"pairs": 32, "batch_size": 8, "save_steps": 2},
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
        """The JSONL file of a data set, e.g. `data("preferences", "test")`.

        Both tasks start from the same base model, so they share its pretraining documents.
        """
        task = "summarize" if name == "pretraining" else self.task
        return data_dir() / task / f"{name}_{split}.jsonl"

    def dir(self, stage: str) -> Path:
        """The folder of a stage's run: `sft`, `reward`, `ppo`, `dpo`."""
        return stage_dir(self.name, stage, self.task, self.seed, self.live)

    def config(self, stage: str, **changes: object) -> StageConfig:
        """The stage's config at this scale, with some fields changed."""
        values: dict = {"seed": self.seed, "output_dir": self.dir(stage)}
        values |= SMOKE[stage] if self.name == "smoke" else {}
        if stage == "sft":
            values |= {"model": self.base_model, "data": self.data("demonstrations", "train")}
            return SFTConfig(**values | changes)
        values |= {"model": self.dir("sft")}
        if stage == "dpo":
            # A quarter of the rankings, best against worst, is enough to reach what PPO reaches.
            values = {"data": self.data("rankings", "train"), "pairs": 640} | values
            return DPOConfig(**values | changes)
        if stage == "reward":
            values |= {"data": self.data("rankings", "train"), "sft_model": self.dir("sft")}
            values |= {"prompts": self.data("prompts", "train")}
            return RewardConfig(**values | changes)
        values |= {"reward_model": self.dir("reward"), "data": self.data("prompts", "train")}
        values |= {"ptx_data": self.data("pretraining", "train")}
        return PPORunConfig(**values | changes)


# PPO settings that push hard enough to show reward hacking at `tiny`; its cure is `kl_coef` alone.
HACKING = {
    "kl_coef": 0.0, "learning_rate": 6e-4, "steps": 30, "batch_size": 32, "mini_batch_size": 16,
}  # fmt: skip
