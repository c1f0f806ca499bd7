"""What each stage's `train(config)` needs, as dataclasses; `scales` fills them in.

The defaults are those of `tiny` on the little world.
"""

import math
from dataclasses import dataclass
from pathlib import Path

CRITICS = ("shared", "separate")
LOSS_TYPES = ("sigmoid", "ipo")
REPORTERS = ("none", "wandb")


@dataclass(kw_only=True)
class StageConfig:
    """What all stages share."""

    model: str | Path  # what to start from: a folder, or a name of the hub
    data: str | Path  # a JSONL file, or what `streams` reads: al://…, hf://…, Parquet, Deep Lake
    output_dir: Path
    seed: int = 0
    instruction: str = ""  # goes in front of every prompt
    lora_rank: int = 0  # 0 trains all weights; the adapter's alpha is twice the rank
    bits: int = 32  # 8 or 4 quantise the frozen weights, never a head; needs lora_rank
    batch_size: int = 32  # of all processes together
    learning_rate: float = 5e-4
    save_steps: int = 50
    report_to: str = "none"  # one of REPORTERS, besides TensorBoard

    def __post_init__(self) -> None:
        if self.bits != 32 and not self.lora_rank:
            raise ValueError(f"weights of {self.bits} bits cannot be trained: set lora_rank too")
        if self.report_to not in REPORTERS:
            raise ValueError(
                f"report_to is {self.report_to!r}; choose one of {', '.join(REPORTERS)}"
            )


@dataclass(kw_only=True)
class TRLStageConfig(StageConfig):
    """What the stages share that TRL trains: SFT, reward model and DPO."""

    eval_data: str | Path | None = None  # held-out data of the same kind
    epochs: float = 1.0
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 20
    weight_decay: float = 0.0
    max_length: int = 512  # tokens of prompt and response
    lora_dropout: float = 0.0
    gradient_checkpointing: bool = False  # compute activations twice, to keep few of them

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; choose 0 to below 1")


@dataclass(kw_only=True)
class SFTConfig(TRLStageConfig):
    """Supervised fine-tuning on demonstrations."""

    demonstrations: int | None = None  # None takes all
    packing: bool = False  # fill rows of max_length tokens with several demonstrations each


@dataclass(kw_only=True)
class RewardConfig(TRLStageConfig):
    """The reward model, on pairs of candidates or on rankings of K."""

    sft_model: str | Path  # whose samples on `prompts` are worth 0 on average, with deviation 1
    prompts: str | Path
    pairs: int | None = None  # or rankings; None takes all
    objective: str = "order"  # "scores" learns the ranks as numbers, by regression
    batch_size: int = 8  # pairs or rankings
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    center_rewards_coefficient: float = 0.001
    label_smoothing: float = 0.0  # share of labels believed to be wrong
    max_new_tokens: int = 48
    calibration_prompts: int = 256
    save_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
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
class RestConfig(TRLStageConfig):
    """Reinforced Self-Training: sample, keep the best, imitate it; then again.

    `model` is the SFT model, `data` are prompts; the rest holds for every Improve step.
    """

    reward_model: str | Path
    grow_steps: int = 2  # data sets sampled, each from the policy that the one before has made
    improve_steps: int = 2  # fine-tunings on each: on the better half, the best quarter, ...
    grow_prompts: int = 400  # to sample for in a Grow step; each has its own
    samples_per_prompt: int = 4
    max_new_tokens: int = 48
    learning_rate: float = 3e-4  # of the first Improve step; two thirds of it at the next
    warmup_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("grow_steps", "improve_steps", "grow_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.samples_per_prompt < 2:
            raise ValueError("samples_per_prompt must be at least 2: one is no better than another")


@dataclass(kw_only=True)
class DPOConfig(TRLStageConfig):
    """Direct preference optimisation: the policy from preferences, without a reward model.

    `model` is the SFT model: policy and reference.
    """

    pairs: int | None = None  # or rankings; None takes all
    loss_type: str = "sigmoid"  # one of LOSS_TYPES
    # The price of a nat of KL in the objective; of "ipo" its tau. With 0.1, usual for large models
    # at far lower learning rates, `tiny` ends 4 nats away from SFT with half of the gain lost.
    beta: float = 1.0
    label_smoothing: float = 0.0  # share of labels believed to be wrong: conservative DPO
    learning_rate: float = 3e-4
    warmup_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
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
    value_learning_rate: float = 1e-3  # of the value head, or of a separate critic with its head
    value_head_std: float = 0.0  # of the head's first weights; 0: every value starts at 0
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
                        "value_head_std", "vf_coef", "min_new_tokens", "missing_eos_penalty",
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
class PPORunConfig(PPOConfig, StageConfig):
    """A whole PPO run: `PPOConfig`, and where everything is.

    `model` is the SFT model: policy and reference; `data` are prompts.
    """

    reward_model: str | Path
    ptx_data: Path | None = None  # pretraining documents, JSONL; read if there is a ptx_coef
    max_prompt_length: int = 512  # tokens; what is longer loses its beginning
    save_steps: int = 20

    def __post_init__(self) -> None:
        PPOConfig.__post_init__(self)
        StageConfig.__post_init__(self)
        if self.ptx_coef and self.ptx_data is None:
            raise ValueError("ptx_coef needs pretraining documents: set ptx_data")


@dataclass(kw_only=True)
class RLAIFConfig(PPORunConfig):
    """PPO against a reward model that an AI labeller has taught.

    That reward model is trained first and written to `reward_model`.
    """

    preferences: str | Path  # pairs for the AI to judge anew
    reward: RewardConfig  # settings of the reward model; its data are the labels
    labels: int = 800
    labeller: str | Path | None = None  # a causal language model; None takes the small labeller
    constitution: Path | None = None  # principles, one a line; None takes `data/constitution.txt`
