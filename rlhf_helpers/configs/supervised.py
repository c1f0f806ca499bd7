"""What the stages need that learn from a fixed data set: SFT, reward model, DPO, ReST."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_helpers.configs.base import TRLStageConfig
from rlhf_helpers.configs.settings import setting

HEADS = ("last_token", "answer_tokens")
OBJECTIVES = ("order", "scores")
LOSS_TYPES = ("sigmoid", "ipo")


@dataclass(kw_only=True)
class SFTConfig(TRLStageConfig):
    """Supervised fine-tuning on demonstrations."""

    demonstrations: int | None = setting(
        None, "how many demonstrations to use; None takes all", at_least=1
    )
    packing: bool = setting(
        False, "fill rows of max_length tokens with several demonstrations each"
    )


@dataclass(kw_only=True)
class RewardConfig(TRLStageConfig):
    """The reward model, on pairs of candidates or on rankings of K."""

    sft_model: str | Path = setting(
        help="whose samples are worth 0 on average, with standard deviation 1"
    )
    prompts: str | Path = setting(help="prompts for those samples, a JSONL file")
    head: str = setting(
        "last_token",
        "'last_token' trains the model and a linear head on the state of the text's last token; "
        "'answer_tokens' trains a small network alone, which scores every token of the answer from "
        "a frozen language model's state and log-probs, and takes the mean",
        choices=HEADS,
    )
    pairs: int | None = setting(
        None, "how many pairs, or rankings, to use; None takes all", at_least=1
    )
    objective: str = setting(
        "order",
        "'order' learns who beats whom, 'scores' the ranks as numbers, by regression (rankings "
        "only)",
        choices=OBJECTIVES,
    )
    batch_size: int = setting(8, "pairs or rankings a step, of all processes together", at_least=1)
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    center_rewards_coefficient: float = setting(
        0.001, "weight of the loss that keeps scores around 0", at_least=0
    )
    label_smoothing: float = setting(
        0.0, "share of labels believed to be the wrong way round", at_least=0, below=0.5
    )
    max_new_tokens: int = setting(48, "longest answer of the SFT model, in tokens", at_least=1)
    calibration_prompts: int = setting(
        256, "prompts that the scores are standardised on", at_least=2
    )
    save_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head == "answer_tokens" and self.lora_rank:
            raise ValueError(
                "the head answer_tokens leaves the language model as it is: set lora_rank to 0, or "
                "the head to last_token"
            )


@dataclass(kw_only=True)
class RestConfig(TRLStageConfig):
    """Reinforced Self-Training: sample, keep the best, imitate it; then again.

    `model` is the SFT model, `data` are prompts; the rest holds for every Improve step.
    """

    reward_model: str | Path = setting(help="the folder of the reward model")
    grow_steps: int = setting(
        2, "data sets to sample, each from the policy that the one before has made", at_least=1
    )
    improve_steps: int = setting(
        2,
        "fine-tunings on each data set: on the better half, the best quarter, and so on",
        at_least=1,
    )
    grow_prompts: int = setting(
        400, "prompts to sample answers for, other ones in each Grow step", at_least=1
    )
    samples_per_prompt: int = setting(4, "answers to each prompt, to choose from", at_least=2)
    max_new_tokens: int = setting(48, "longest answer, in tokens", at_least=1)
    learning_rate: float = setting(
        3e-4, "of the first Improve step; at each of the next two thirds of it", at_least=0
    )
    warmup_steps: int = 5


@dataclass(kw_only=True)
class DPOConfig(TRLStageConfig):
    """Direct preference optimisation: the policy from preferences, without a reward model.

    `model` is the SFT model: policy and reference.
    """

    pairs: int | None = setting(
        None, "how many pairs, or rankings, to use; None takes all", at_least=1
    )
    loss_type: str = setting(
        "sigmoid",
        "'sigmoid' is DPO's own, 'ipo' regresses the log ratios on a target",
        choices=LOSS_TYPES,
    )
    # 0.1 is usual for large models, at far lower learning rates.
    beta: float = setting(1.0, "price of a nat of KL from the SFT model (ipo: its tau)", above=0)
    label_smoothing: float = setting(
        0.0,
        "share of labels believed to be the wrong way round: conservative DPO",
        at_least=0,
        below=0.5,
    )
    learning_rate: float = 3e-4
    warmup_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError("label_smoothing belongs to the sigmoid loss: leave it 0 for ipo")
