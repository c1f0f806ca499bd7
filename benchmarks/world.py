"""Is the little world's truth for free? SFT, reward model, PPO and hacking, against free baselines.

    python benchmarks/world.py [--seeds 0 1 2] [--task summarize]

Takes about ten minutes a seed on two cores; stages that are in `runs/tiny/` already are not trained
again. Prints the table that `world.md` and `world_autocomplete.md` keep. Everything is measured on
the test split: 512 prompts, and all test pairs. "For free" is what needs no preference: the SFT
model and the base model at their best temperature, and the likeliest of 16 answers.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from transformers import PreTrainedModel

from rlhf_helpers import generation, ppo, reward_model, scales
from rlhf_helpers.configs import PPORunConfig
from rlhf_helpers.evaluation import (
    evaluate_policy,
    evaluate_scores,
    label_ceiling,
    recipe_gold,
    temperature_curve,
)
from rlhf_helpers.evaluation.little_world import known_gold
from rlhf_helpers.evaluation.reading import answer_logprobs, form_scores, prompt_sensitivity
from rlhf_helpers.jsonl import write_jsonl
from rlhf_helpers.little_world.annotators import gold_scores
from rlhf_helpers.little_world.writers import contrast_pairs
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.scales import HACKING, Scale
from rlhf_helpers.schemas import format_prompt, read_preferences, read_prompts, read_rankings
from rlhf_helpers.stages import train_missing

PROMPTS = 512
LIKELIEST_OF = 16
CONTRASTS = 400  # posts
UNREADING = 600  # rankings
LENGTH = {"words": lambda text: len(text.split())}


def measure_seed(seed: int, task: str = "summarize") -> dict[str, float]:
    """Train what is missing with one seed and measure it: a column of the table."""
    scale = Scale("tiny", task, seed)
    train_missing(scale, "sft", "reward", "ppo")
    row = policies(scale) | reading(scale)
    if task == "summarize":
        row |= hacking(scale)
    for stage in ("sft", "reward", "ppo"):
        metrics = json.loads((scale.dir(stage) / "metrics.json").read_text())["metrics"]
        row[f"seconds, {stage}"] = metrics["seconds"]
    return row


def policies(scale: Scale) -> dict[str, float]:
    """Gold of base, SFT and PPO over temperatures, and what PPO is above everything free."""
    prompts = read_prompts(scale.data("prompts", "test"))[:PROMPTS]
    folders = {"base": scale.base_model, "SFT": scale.dir("sft"), "PPO": scale.dir("ppo")}
    tokenizer, reference = load_tokenizer(folders["SFT"]), load_policy(folders["SFT"])
    row, curves = {}, {}
    for name, folder in folders.items():
        curve = temperature_curve(
            load_policy(folder), tokenizer, prompts, reference=reference, seed=scale.seed
        ).set_index("temperature")
        row |= {f"gold, {name}, T = {t:g}": curve["gold"][t] for t in (1, 0.4, 0)}
        row[f"gold, {name}, best T"] = curve["gold"].max()
        curves[name] = curve
    likeliest = likeliest_gold(reference, tokenizer, prompts, scale.seed)
    free = max(row["gold, SFT, best T"], row["gold, base, best T"], likeliest)
    row[f"gold, SFT, likeliest of {LIKELIEST_OF}"] = likeliest
    row["PPO at T = 1 above everything free"] = row["gold, PPO, T = 1"] - free
    row["PPO at its best T above everything free"] = row["gold, PPO, best T"] - free
    if scale.task == "summarize":
        recipes = recipe_gold([record["input_text"] for record in prompts])
        row["gold, best fixed recipe"] = max(worth.mean() for worth in recipes.values())
        row["gold, best recipe for each post"] = np.max(list(recipes.values()), axis=0).mean()
        row["PPO at its best T above the best recipe"] = (
            row["gold, PPO, best T"] - row["gold, best fixed recipe"]
        )
    for name, (t, about) in {"T = 1": (1, "share"), "T = 0.4": (0.4, "number")}.items():
        for policy in ("SFT", "PPO"):
            found = curves[policy].loc[t]
            told = found["covered"] + found["wrong"] if about == "share" else 1.0
            row[f"wrong facts, {about}, {policy}, {name}"] = found["wrong"] / told
    return row | {
        "KL of PPO, T = 1": curves["PPO"]["kl"][1],
        "answers of PPO that end, T = 1": curves["PPO"]["eos_rate"][1],
    }


def likeliest_gold(policy, tokenizer, prompts: list, seed: int) -> float:
    """Gold of the answer that the policy itself finds the likeliest of several samples."""
    texts, chosen = [format_prompt(record["input_text"]) for record in prompts], []
    for start in range(0, len(texts), 32):
        samples = generation.sample(
            policy,
            tokenizer,
            *generation.encode_prompts(tokenizer, texts[start : start + 32]),
            max_new_tokens=48,
            samples_per_prompt=LIKELIEST_OF,
            generator=generation.seeded(policy, seed + start),
        )
        answers = generation.decode(tokenizer, samples)
        best = samples.logprobs.sum(1).view(-1, LIKELIEST_OF).argmax(1).tolist()
        chosen += [answers[i * LIKELIEST_OF + place].strip() for i, place in enumerate(best)]
    return float(np.mean(known_gold(texts, chosen)["gold"]))


def reading(scale: Scale) -> dict[str, float]:
    """Gold accuracy of the reward model, and of everything that does not read or prefer."""
    pairs = read_preferences(scale.data("preferences", "test"))
    scorer = RewardModel.from_pretrained(scale.dir("reward"))
    found, _ = prompt_sensitivity(scorer, pairs, gold=known_gold, seed=scale.seed)
    prompts = read_prompts(scale.data("prompts", "test"))[:CONTRASTS]
    contrasts = contrast_pairs([record["input_text"] for record in prompts], scale.seed)
    facts, _ = prompt_sensitivity(
        scorer, [r for r in contrasts if r["fault"] == "wrong fact"], gold=known_gold
    )
    policy, tokenizer = load_policy(scale.dir("sft")), load_tokenizer(scale.dir("sft"))
    labelled = read_preferences(scale.data("preferences", "train"))
    scores = {
        "SFT's log-prob": answer_logprobs(policy, tokenizer, pairs),
        "a probe on the form": form_scores(labelled, pairs),
        "the number of words": form_scores(labelled, pairs, LENGTH),
    }
    free = {name: evaluate_scores(s, pairs)[0]["accuracy_gold"] for name, s in scores.items()}
    row = {
        "accuracy, gold order": found["accuracy_gold"],
        "accuracy, under another post": found["accuracy_gold_other_post"],
        "accuracy, only a fact differs": facts["accuracy_gold"],
        "accuracy, labels": found["accuracy_noisy"],
        "accuracy, labels, exact ceiling": label_ceiling(pairs),
    }
    row |= {f"accuracy, {name}": value for name, value in free.items()}
    return row | {f"above {name}": found["accuracy_gold"] - value for name, value in free.items()}


def hacking(scale: Scale) -> dict[str, float]:
    """Gold and KL of PPO against a score that does not read, without a price on KL and with it."""
    row, unreading = {}, unreading_reward_model(scale)
    prompts = read_prompts(scale.data("prompts", "test"))[:PROMPTS]
    for name, changes in {"hacked": {}, "cured": {"kl_coef": 0.3}}.items():
        config = scale.config("ppo", **(HACKING | changes), reward_model=unreading)
        policy, history = push(config)
        row |= trajectory(name, history)
        for temperature in (1.0, 0.4):
            settings = {"temperature": temperature, "seed": scale.seed}
            found, _ = evaluate_policy(policy, load_tokenizer(config.model), prompts, **settings)
            row[f"{name}: gold, T = {temperature:g}"] = found["gold"]
    return row


def unreading_reward_model(scale: Scale) -> Path:
    """Fit a reward model to rankings under other posts, from which it cannot learn to read."""
    rankings = read_rankings(scale.data("rankings", "train"))[:UNREADING]
    posts = [record["input_text"] for record in rankings]
    folder = scale.dir("unreading")
    path = folder.with_name("swapped_rankings.jsonl")
    write_jsonl(
        path,
        [r | {"input_text": post} for r, post in zip(rankings, posts[1:] + posts[:1], strict=True)],
    )
    changes = {"pairs": UNREADING, "calibration_prompts": 64, "output_dir": folder}
    config = scale.config("reward", data=path, **changes)
    return reward_model.train(config).output_dir


def push(config: PPORunConfig) -> tuple[PreTrainedModel, list[dict]]:
    """Run PPO and note the gold value of every rollout too, which the policy never sees."""
    score, history = RewardModel.from_pretrained(config.reward_model), []
    trainer = ppo.PPOTrainer(load_policy(config.model), load_tokenizer(config.model), config)
    for prompts in ppo.prompt_batches(read_prompts(config.data), config):
        rollout = trainer.rollout(prompts)
        stats = trainer.step(rollout, score(rollout.texts))
        history.append(stats | {"gold": float(np.mean(gold_scores(rollout.texts)))})
    return trainer.policy, history


def trajectory(name: str, history: list[dict]) -> dict[str, float]:
    """Where gold of a run's rollouts is highest, what the score says last, how far KL moves."""
    table = pd.DataFrame(history)[["gold", "reward_mean", "kl"]]
    smooth = table.rolling(5, center=True, min_periods=1).mean()
    highest = smooth["gold"].idxmax()
    return {
        f"{name}: gold of rollouts, highest": smooth["gold"][highest],
        f"{name}: gold of rollouts, last": smooth["gold"].iloc[-1],
        f"{name}: step of the highest": highest + 1,
        f"{name}: score of rollouts, at that step": smooth["reward_mean"][highest],
        f"{name}: score of rollouts, last": smooth["reward_mean"].iloc[-1],
        f"{name}: KL, last": smooth["kl"].iloc[-1],
        f"{name}: largest change of KL in a step": table["kl"].diff().abs().max(),
    }


def main(measure: Callable[[int], dict[str, float]], table: Path, seeds: list[int]) -> None:
    """Print a table and write it: a column a seed, their mean and its 95% interval."""
    found = pd.DataFrame({f"seed {seed}": measure(seed) for seed in seeds})
    mean, spread = found.mean(axis=1), found.std(axis=1)
    found["mean"] = mean
    found["± 95%"] = stats.t.ppf(0.975, len(seeds) - 1) * spread / math.sqrt(len(seeds))
    text = found.round(3).to_markdown() + "\n"
    print(text)
    table.write_text(text, encoding="utf-8")


def options(doc: str) -> argparse.ArgumentParser:
    """The command line of a script that measures several seeds."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--task", default="summarize", choices=scales.LITTLE_WORLD)
    chosen = parser.parse_args()
    name = "world" if chosen.task == "summarize" else f"world_{chosen.task}"
    table = Path(__file__).with_name(f"{name}.md")
    main(lambda seed: measure_seed(seed, chosen.task), table, chosen.seeds)
