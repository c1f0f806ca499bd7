"""PPO with and without some pretraining mixed in (PPO-ptx), at `tiny` with three seeds of PPO.

    python benchmarks/alignment_tax.py [--seeds 0 1 2]

All runs start from one SFT model and one reward model; what is in `runs/tiny/summarize/seed0/` is
not trained again. Takes about three minutes a seed on two cores, and prints the table that
`benchmarks/alignment_tax.md` keeps: 512 test prompts, 500 held-out pretraining documents.
"""

from pathlib import Path

from world import main, options

from rlhf_helpers import models, ppo, reward_model, schemas
from rlhf_helpers.evaluation import evaluate_policy, perplexity
from rlhf_helpers.scales import Scale
from rlhf_helpers.stages import train_missing

PTX_COEF = 0.5  # as in L8
KEYS = ("reward", "gold", "kl", "perplexity")


def measure(seed: int) -> dict[str, float]:
    """The numbers of both runs of one seed."""
    scale, row = Scale("tiny"), {}
    train_missing(scale, "sft", "reward")
    for name, ptx_coef in (("PPO", 0.0), ("PPO-ptx", PTX_COEF)):
        folder = scale.dir(f"{name}-{seed}")
        config = scale.config("ppo", seed=seed, ptx_coef=ptx_coef, output_dir=folder)
        if not (folder / "metrics.json").exists():
            ppo.train(config)
        row |= {f"{name}: {key}": value for key, value in evaluate(scale, folder, seed).items()}
    return row | {f"difference in {k}": row[f"PPO-ptx: {k}"] - row[f"PPO: {k}"] for k in KEYS}


def evaluate(scale: Scale, folder: Path, seed: int) -> dict[str, float]:
    """Reward, gold and KL of sampled answers, and the perplexity of held-out documents."""
    policy, tokenizer = models.load_policy(folder), models.load_tokenizer(folder)
    metrics, _ = evaluate_policy(
        policy,
        tokenizer,
        schemas.read_prompts(scale.data("prompts", "test")),
        seed=seed,
        reward_model=reward_model.RewardModel.from_pretrained(scale.dir("reward")),
        reference=models.load_policy(scale.dir("sft")),
    )
    texts = [record["text"] for record in schemas.read_texts(scale.data("pretraining", "test"))]
    metrics["perplexity"] = perplexity(policy, tokenizer, texts)
    return {key: metrics[key] for key in KEYS}


if __name__ == "__main__":
    table = Path(__file__).with_suffix(".md")
    main(measure, table, options(__doc__).parse_args().seeds)
