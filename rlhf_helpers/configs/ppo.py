"""What PPO needs, as a trainer and as a whole run; and RLAIF, which ends in PPO."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_helpers.configs.base import LARGEST_SEED, StageConfig
from rlhf_helpers.configs.settings import check_settings, setting
from rlhf_helpers.configs.supervised import RewardConfig

CRITICS = ("shared", "separate")
ESTIMATORS = ("gae", "reinforce", "rloo", "grpo", "dr_grpo")
OF_GROUPS = ("rloo", "grpo", "dr_grpo")  # compare the responses to one prompt with each other
AGGREGATIONS = ("token", "sequence", "constant")
KL_PLACES = ("reward", "loss")


@dataclass(kw_only=True)
class PPOConfig:
    """What `ppo.PPOTrainer` needs. Sources are given where each value acts, in `ppo`.

    With several processes, each takes its share of a batch and of its mini-batches.
    """

    steps: int = setting(
        45, "rollouts to learn from; the learning rate falls to a tenth over these", at_least=1
    )
    warmup_steps: int = setting(5, "steps until the learning rate is reached", at_least=0)
    batch_size: int = setting(64, "responses a step, of all processes together", at_least=1)
    samples_per_prompt: int = setting(
        4, "answers to each prompt, which is encoded once for all of them", at_least=1
    )
    mini_batch_size: int = setting(32, "answers an optimiser step", at_least=1)
    gradient_accumulation_steps: int = setting(
        1, "parts that a mini-batch is computed in, one after the other, to save memory", at_least=1
    )
    ppo_epochs: int = setting(2, "passes over each rollout", at_least=1)
    learning_rate: float = setting(2e-4, "of the policy, after the warm-up", at_least=0)
    value_learning_rate: float = setting(
        1e-3, "of the value head, or of the separate critic with its head", at_least=0
    )
    value_head_std: float = setting(
        0.0,
        "standard deviation of the value head's first weights; 0: every value starts at 0",
        at_least=0,
    )
    critic: str = setting(
        "shared",
        "shared: values come from the policy's states; separate: from a network's own",
        choices=CRITICS,
    )
    kl_coef: float = setting(
        0.15,
        "price of a nat of KL from the SFT model; with adaptive_kl only the first one",
        at_least=0,
    )
    adaptive_kl: bool = setting(
        False, "raise or lower kl_coef after every step to hold the KL at kl_target"
    )
    kl_target: float = setting(6.0, "nats an answer that adaptive_kl holds", above=0)
    kl_horizon: float = setting(10_000, "answers that adaptive_kl takes to react", above=0)
    target_kl: float | None = setting(
        None,
        "stop updating on a rollout at 1.5 times so many nats a token from its policy; None never "
        "does",
        above=0,
    )
    advantages: str = setting(
        "gae",
        "gae takes a critic; reinforce, the batch for a baseline; rloo, grpo and dr_grpo, the "
        "other answers to the prompt",
        choices=ESTIMATORS,
    )
    kl_place: str | None = setting(
        None,
        "reward: the KL is paid a token, as k1; loss: it is a term of the loss, as k3; None is "
        "loss for grpo and dr_grpo, else reward",
        choices=KL_PLACES,
    )
    aggregation: str | None = setting(
        None,
        "the policy loss is a mean over token, over sequence (of its tokens' mean), or divided by "
        "a constant, max_new_tokens; None is sequence for grpo, constant for dr_grpo, else token",
        choices=AGGREGATIONS,
    )
    drop_equal_groups: bool = setting(
        False,
        "leave the answers to a prompt out of the loss where all of them score alike (after DAPO, "
        "which samples others in their place); for rloo, grpo and dr_grpo",
    )
    gamma: float = setting(1.0, "discount a token", at_least=0, at_most=1)
    lam: float = setting(0.95, "lambda of generalised advantage estimation", at_least=0, at_most=1)
    cliprange: float = setting(
        0.2, "how far a token's probability may move in one step, as a ratio", above=0
    )
    cliprange_high: float | None = setting(
        None, "the same upwards, where it is to be another (DAPO's clip-higher)", above=0
    )
    cliprange_value: float = setting(0.2, "how far a value may move in one step", above=0)
    vf_coef: float = setting(0.1, "weight of the value loss", at_least=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    temperature: float = setting(1.0, "of sampling", above=0)
    min_new_tokens: int = setting(0, "no answer ends before so many tokens", at_least=0)
    draw_lengths: bool = setting(
        False,
        "draw each answer's length evenly from min_new_tokens to max_new_tokens; EOS stops none",
    )
    max_new_tokens: int = setting(48, "longest answer, in tokens", at_least=1)
    missing_eos_penalty: float = setting(
        1.0,
        "taken off the score of an answer that does not end; not where lengths are drawn",
        at_least=0,
    )
    score_clip: float | None = setting(None, "cut scores to at most this, up and down", above=0)
    ptx_coef: float = setting(
        0.0, "weight of the pretraining loss (PPO-ptx), of a document a prompt", at_least=0
    )
    seed: int = setting(0, "of all random numbers", at_least=0, at_most=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_settings(self)
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
        if self.advantages in OF_GROUPS and self.samples_per_prompt < 2:
            raise ValueError(
                f"{self.advantages} compares the answers to a prompt: set samples_per_prompt to 2 "
                "or more"
            )
        if self.advantages != "gae" and self.critic != "shared":
            raise ValueError(f"{self.advantages} has no critic: leave critic as it is")
        if self.advantages != "gae" and self.gamma != 1:
            raise ValueError(f"{self.advantages} does not discount: leave gamma 1")
        if self.drop_equal_groups and self.advantages not in OF_GROUPS:
            raise ValueError(f"drop_equal_groups is for {', '.join(OF_GROUPS)}")
        if self.draw_lengths and not self.min_new_tokens:
            raise ValueError("draw_lengths needs the shortest length: set min_new_tokens above 0")
        if self.adaptive_kl and not self.kl_coef:
            raise ValueError("adaptive_kl multiplies kl_coef: start it above 0")

    @property
    def has_critic(self) -> bool:
        """Whether values are learned: only generalised advantage estimation takes them."""
        return self.advantages == "gae"

    @property
    def kl_is_in_loss(self) -> bool:
        """Whether the KL is a term of the loss, by choice or as usual for the estimator."""
        usual = "loss" if self.advantages in ("grpo", "dr_grpo") else "reward"
        return (self.kl_place or usual) == "loss"

    @property
    def loss_aggregation(self) -> str:
        """One of AGGREGATIONS, by choice or as usual for the estimator."""
        usual = {"grpo": "sequence", "dr_grpo": "constant"}.get(self.advantages, "token")
        return self.aggregation or usual


@dataclass(kw_only=True)
class PPORunConfig(PPOConfig, StageConfig):
    """A whole PPO run: `PPOConfig`, and where everything is.

    `model` is the SFT model: policy and reference; `data` are prompts.
    """

    reward_model: str | Path = setting(
        help="the folder of a reward model (rlaif: where its own goes)"
    )
    reward_model_weight: float = setting(
        1.0, "weight of the reward model beside reward functions; 0 leaves it out", at_least=0
    )
    reward_function: tuple[str, ...] = setting(
        (),
        "a reward of your own, file.py:function or with a weight file.py:function=0.5; it scores "
        "texts, or (prompt, response, record); may be given several times",
    )
    ptx_data: Path | None = setting(
        None, "pretraining documents for the pretraining loss, a JSONL file"
    )
    max_prompt_length: int = setting(
        512, "tokens of a prompt; a longer one loses its beginning", at_least=1
    )
    save_steps: int = 20

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        PPOConfig.__post_init__(self)
        if self.ptx_coef and self.ptx_data is None:
            raise ValueError("ptx_coef needs pretraining documents: set ptx_data")
        if not self.reward_model_weight and not self.reward_function:
            raise ValueError("reward_model_weight 0 leaves no reward: set reward_function too")


@dataclass(kw_only=True)
class RLOOConfig(PPORunConfig):
    """A run of the same trainer without a critic, with the leave-one-out baseline (RLOO)."""

    advantages: str = setting("rloo", "the mean of a prompt's other answers", choices=("rloo",))


@dataclass(kw_only=True)
class GRPOConfig(PPORunConfig):
    """A run of the same trainer without a critic, with advantages relative to a group (GRPO)."""

    advantages: str = setting(
        "grpo",
        "grpo divides by the deviation of a prompt's answers, dr_grpo does not",
        choices=("grpo", "dr_grpo"),
    )


@dataclass(kw_only=True)
class RLAIFConfig(PPORunConfig):
    """PPO against a reward model that an AI labeller has taught.

    That reward model is trained first and written to `reward_model`.
    """

    preferences: str | Path = setting(
        help="pairs for the AI to judge anew; a file or source like --data of reward"
    )
    reward: RewardConfig = setting(help="settings of the reward model; its data are the labels")
    labels: int = setting(800, "how many of these pairs", at_least=1)
    labeller: str | Path | None = setting(
        None,
        "a causal language model, a folder or a name of the hub, that judges; None takes the small "
        "labeller of data/labeller",
    )
    constitution: Path | None = setting(
        None, "a file of principles, one a line, by which it judges; None takes the course's"
    )
