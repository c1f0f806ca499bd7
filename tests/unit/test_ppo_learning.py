"""PPO learns: a rule, and to the closed-form optimum where that is known."""

import itertools

import pytest
import torch
from ppo_helpers import run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_helpers.ppo import PPOConfig, PPOTrainer

LEARNING = {
    "steps": 25,
    "batch_size": 32,
    "mini_batch_size": 16,
    "samples_per_prompt": 8,
    "missing_eos_penalty": 0.0,
    "learning_rate": 3e-3,
}


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_a_rule(make_trainer, seed):
    rewards = [
        stats["reward_mean"] for stats in run(make_trainer(seed=seed, kl_coef=0.02, **LEARNING), 25)
    ]
    assert rewards[0] < 0.5
    assert sum(rewards[-5:]) / 5 > 0.75


def test_a_large_kl_coef_keeps_the_policy_near_its_reference(make_trainer):
    free, held = (
        [stats["kl"] for stats in run(make_trainer(kl_coef=kl_coef, **LEARNING), 12)][-4:]
        for kl_coef in (0.0, 1.0)
    )
    assert min(free) > 4
    assert max(held) < 2


# ---- bandits, whose optimum is known -------------------------------------------------------

ACTIONS = ["<pad>", "</s>", "a", "b", "c"]
REWARDS = torch.tensor([0.0, 0.3, 1.0, 0.5, 0.2])
BONUS = 0.5 * torch.eye(5).roll(1, 0)  # of the second of two actions, given the first


def make_bandit(seed: int) -> PreTrainedModel:
    """A policy of five actions, far from even, and another one for another seed."""
    config = OPTConfig(
        vocab_size=5,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        init_std=0.4,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {action: i for i, action in enumerate(ACTIONS)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="c")),
        pad_token="<pad>",
        eos_token="</s>",
    )


@torch.no_grad()
def distribution(policy: PreTrainedModel, tokens: int) -> Tensor:
    """Probabilities (5,) or (25,) of all responses of one or two tokens to the prompt 'a'."""
    if tokens == 1:
        return torch.softmax(policy(torch.tensor([[2]])).logits[0, -1], -1)
    both = torch.tensor([[2, *pair] for pair in itertools.product(range(5), repeat=2)])
    logprobs = torch.log_softmax(policy(both).logits, -1)
    rows = torch.arange(25)
    return (logprobs[rows, 0, both[:, 1]] + logprobs[rows, 1, both[:, 2]]).exp()


def total_variation(policy: PreTrainedModel, optimum: Tensor, tokens: int = 1) -> float:
    """Half the sum of absolute differences, over all responses."""
    return (distribution(policy, tokens) - optimum).abs().sum().item() / 2


def learn_bandit(
    policy: PreTrainedModel, reference: PreTrainedModel, rewards: Tensor, tokens: int = 1, **changes
) -> None:
    """Train on all responses of some tokens, first fast and then slowly."""
    for learning_rate, steps in ((6e-3, 40), (6e-4, 10)):
        settings = {
            "learning_rate": learning_rate,
            "value_learning_rate": 3e-2,
            "steps": steps,
            "warmup_steps": 1,
            "ppo_epochs": 4,
            "batch_size": 512,
            "mini_batch_size": 512,
            "lam": 1.0,
            "samples_per_prompt": 512,
            "min_new_tokens": tokens,
            "draw_lengths": True,
            "max_new_tokens": tokens,
        }
        config = PPOConfig(**settings | changes)
        trainer = PPOTrainer(policy, make_tokenizer(), config, reference=reference)
        for _ in range(config.steps):
            rollout = trainer.rollout(["a"])
            index = (rollout.response_ids * torch.tensor([5, 1])[-tokens:]).sum(1)
            trainer.step(rollout, rewards[index])


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "kl_coef"), [(1, 0.2), (1, 1.0), (1, 5.0), (2, 1.0)])
def test_a_bandit_reaches_the_closed_form_optimum(tokens, kl_coef):
    """The best policy is the reference times exp(reward / kl_coef), up to a constant.

    The policy starts as another than the reference, so that a high price of KL has to bring it
    back.
    """
    policy, reference = make_bandit(seed=0), make_bandit(seed=1)
    rewards = REWARDS if tokens == 1 else (REWARDS + REWARDS[:, None] + BONUS).flatten()
    optimum = torch.softmax(distribution(reference, tokens).log() + rewards / kl_coef, -1)
    assert total_variation(policy, optimum, tokens) > 0.4
    learn_bandit(policy, reference, rewards, tokens, kl_coef=kl_coef)
    assert total_variation(policy, optimum, tokens) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["reinforce", "rloo", "grpo", "dr_grpo"])
def test_without_a_critic_too_with_the_kl_in_the_reward(estimator):
    policy, reference = make_bandit(seed=0), make_bandit(seed=1)
    optimum = torch.softmax(distribution(reference, 1).log() + REWARDS / 0.5, -1)
    assert total_variation(policy, optimum) > 0.4
    learn_bandit(policy, reference, REWARDS, kl_coef=0.5, advantages=estimator, kl_place="reward")
    assert total_variation(policy, optimum) < 0.02


@pytest.mark.slow
def test_the_kl_in_the_loss_has_another_optimum():
    """The gradient of k3 on samples of the policy is that of KL(reference || policy).

    Where it balances that of the reward, pi (r - mean r) + kl_coef (pi_ref - pi) = 0 for every
    action, so pi = kl_coef pi_ref / (kl_coef + mean r - r), with the mean for which that sums to 1.
    """
    policy, reference = make_bandit(seed=0), make_bandit(seed=1)
    start, kl_coef, low, high = distribution(reference, 1), 0.3, 0.7, 1.0
    for _ in range(60):
        mean = (low + high) / 2
        optimum = kl_coef * start / (kl_coef + mean - REWARDS)
        low, high = (mean, high) if optimum.sum() > 1 else (low, mean)
    exponential = torch.softmax(start.log() + REWARDS / kl_coef, -1)
    assert (optimum - exponential).abs().sum() / 2 > 0.07
    learn_bandit(policy, reference, REWARDS, kl_coef=kl_coef, advantages="dr_grpo")
    assert total_variation(policy, optimum) < 0.02
    assert total_variation(policy, exponential) > 0.05
