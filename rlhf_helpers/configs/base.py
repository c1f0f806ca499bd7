"""What all stages need, and all those that TRL trains."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_helpers.configs.settings import check_settings, setting

CHAT = ("auto", "on", "off")
REPORTERS = ("none", "wandb")
SCHEDULERS = (  # of transformers, those that need no further argument
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
LARGEST_SEED = 2**32 - 1  # NumPy takes no larger one


@dataclass(kw_only=True)
class StageConfig:
    """What all stages share."""

    model: str | Path = setting(help="what to start from: a folder, or a name of the hub")
    data: str | Path = setting(
        help="the training data: a JSONL file (reward, dpo: preferences, or rankings of K "
        "answers), a Parquet file, a Deep Lake folder, al://org/name or hf://org/name; "
        "data/README.md lists the columns that are known"
    )
    output_dir: Path = setting(help="where the model, metrics.json, logs and checkpoints go")
    seed: int = setting(0, "of all random numbers", at_least=0, at_most=LARGEST_SEED)
    instruction: str = setting(
        "", "goes in front of every prompt, e.g. 'Summarize in less than 50 words.'"
    )
    chat: str = setting(
        "auto",
        "prompts go through the chat template of the model's tokenizer; auto: as the model was "
        "trained here, else wherever there is a template",
        choices=CHAT,
    )
    system_prompt: str | None = setting(
        None, "in front of every conversation of a chat model; None: as the model was trained here"
    )
    lora_rank: int = setting(
        0,
        "rank of a LoRA adapter, whose alpha is twice the rank, merged at the end; 0 trains all "
        "weights",
        at_least=0,
    )
    bits: int = setting(
        32,
        "16, 8 or 4 quantise the frozen weights under a LoRA adapter, never a head",
        choices=(32, 16, 8, 4),
    )
    batch_size: int = setting(
        32, "records (ppo: responses) a step, of all processes together", at_least=1
    )
    learning_rate: float = setting(
        5e-4, "of all weights (ppo: of the policy), after the warm-up", at_least=0
    )
    save_steps: int = setting(
        50, "steps between checkpoints, from which --resume continues", at_least=1
    )
    report_to: str = setting(
        "none",
        "wandb also writes to Weights & Biases; without an account, offline",
        choices=REPORTERS,
    )

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        check_settings(self)
        if self.bits != 32 and not self.lora_rank:
            raise ValueError(f"weights of {self.bits} bits cannot be trained: set lora_rank too")


@dataclass(kw_only=True)
class TRLStageConfig(StageConfig):
    """What the stages share that TRL trains: SFT, reward model and DPO."""

    eval_data: str | Path | None = setting(
        None, "held-out data of the same kind, for the loss at every checkpoint"
    )
    epochs: float = setting(1.0, "passes over the data", above=0)
    lr_scheduler_type: str = setting(
        "linear", "how the learning rate falls after the warm-up", choices=SCHEDULERS
    )
    warmup_steps: int = setting(20, "steps until the learning rate is reached", at_least=0)
    weight_decay: float = setting(0.0, "of AdamW", at_least=0)
    max_length: int = setting(
        512,
        "tokens of prompt and answer; what is longer loses the prompt's beginning",
        at_least=2,
    )
    lora_dropout: float = setting(
        0.0, "share of the adapter's inputs that are dropped while training", at_least=0, below=1
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations twice, to keep few of them in memory"
    )
