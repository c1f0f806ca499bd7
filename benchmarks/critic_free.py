"""Training without a critic: our RLOO and GRPO against TRL's RLOOTrainer and GRPOTrainer.

    python benchmarks/critic_free.py [--parts "S, one core" …] [--seeds 5]

TRL 1.16.0 runs in a virtual environment of its own, made under `runs/benchmarks/`. All sides get
the same weights, the same prompts of 64 tokens, four samples of 32 tokens to each, the same reward,
one pass over a rollout of 64 in mini-batches of 16, the same Adam, fp32, one core. They take turns,
A B C A B C, so that the ratios hold on a busy machine too. Our PPO stands beside them: what a
critic costs. In `Learning` each side takes 40 steps towards a rule; reward and KL are then measured
on its saved policy, by the same function for all. The tables go to `benchmarks/critic_free.md`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ppo_step import machine
from workers.ppo_sides import Side, python
from workers.ppo_step import prompt_ids, rule, text

from rlhf_helpers.evaluation.metrics import evaluate_policy
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.rewards import Reward

WORKER = Path(__file__).parent / "workers" / "critic_free.py"
ROWS = {
    "ours, RLOO": {"side": "ours", "advantages": "rloo"},
    "TRL 1.16.0, RLOO": {"side": "trl", "advantages": "rloo"},
    "ours, GRPO": {"side": "ours", "advantages": "grpo", "kl_coef": 0.04},
    "TRL 1.16.0, GRPO": {"side": "trl", "advantages": "grpo", "kl_coef": 0.04},
    "ours, PPO": {"side": "ours", "advantages": "gae"},
}
PEER = {"ours, RLOO": "TRL 1.16.0, RLOO", "ours, GRPO": "TRL 1.16.0, GRPO"}
STEPS = 40  # of learning, at a rate at which the rule is learned within them
LEARNING = {"lr": 1e-3, "rule": True}
PROMPTS = 64  # that reward and KL are measured on


def start(folder: Path, name: str, **options: Any) -> Side:
    return Side(folder, name, worker=WORKER, **ROWS[name] | options)


def measure(size: str, steps: int = 10, warmup: int = 2) -> str:
    """Median seconds of a step, the memory of a first one, and both beside TRL's."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [start(Path(folder), name, size=size) for name in ROWS]
        peaks = {side.name: side.step("memory")["peak"] for side in sides}
        rounds = [[side.step()["seconds"] for side in sides] for _ in range(warmup + steps)]
        for side in sides:
            side.close()
    seconds = dict(zip(ROWS, np.median(rounds[warmup:], axis=0), strict=True))
    lines = []
    for name in ROWS:
        line = {size: name, "seconds": f"{seconds[name]:.2f}", "peak, MB": f"{peaks[name]:.0f}"}
        for title, other in (("TRL's", PEER.get(name)), ("our PPO's", "ours, PPO")):
            times = f"{seconds[other] / seconds[name]:.2f}" if other else ""
            line[f"times as fast as {title}"] = times
            line[f"of {title} memory"] = f"{peaks[name] / peaks[other]:.2f}" if other else ""
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def learn(name: str, seed: int) -> dict[str, float]:
    """Take the steps, then measure the policy that is left: the rule's score, KL from the start."""
    with tempfile.TemporaryDirectory() as folder:
        side = start(Path(folder), name, seed=seed, **LEARNING)
        first = load_policy(side.folder / "policy")
        seconds = sum(side.step()["seconds"] for _ in range(STEPS))
        side.step("save")
        side.close()
        policy, tokenizer = (load(side.folder / "policy") for load in (load_policy, load_tokenizer))
    prompts = [{"input_text": text(ids)} for ids in prompt_ids({"batch": PROMPTS, "prompt": 64})[0]]
    by_rule = Reward("rule", lambda prompt, response, record: rule(response))
    settings: dict[str, Any] = {"max_new_tokens": 32, "reward_functions": [by_rule]}
    found, _ = evaluate_policy(policy, tokenizer, prompts, reference=first, **settings)
    return {"score": found["reward/rule"], "kl": found["kl"], "seconds": seconds}


def learning(seeds: int) -> str:
    """The rule's score and the KL after the steps, over seeds."""
    lines = []
    for name in ROWS:
        ends = pd.DataFrame([learn(name, seed) for seed in range(seeds)])
        print(name, ends, flush=True)
        lines.append(
            {
                "": name,
                f"score after {STEPS} steps, by seed": " ".join(f"{x:.2f}" for x in ends["score"]),
                "mean": f"{ends['score'].mean():.2f}",
                "KL, nats a response, by seed": " ".join(f"{x:.1f}" for x in ends["kl"]),
                "mean KL": f"{ends['kl'].mean():.1f}",
            }
        )
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


PARTS = {
    "S, one core": lambda seeds: measure("S"),
    "M, one core": lambda seeds: measure("M"),
    "Learning": learning,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=5, help="of `Learning` (default: 5)")
    options = parser.parse_args()
    python("trl")
    report = Path(__file__).with_suffix(".md")
    known = report.read_text(encoding="utf-8").split("\n## ")[1:] if report.exists() else []
    sections = dict(section.split("\n\n", 1) for section in known)
    for part in options.parts:  # the others stay as they are
        sections[part] = PARTS[part](options.seeds).strip()
        print(sections[part], flush=True)
        parts = [f"## {name}\n\n{sections[name].strip()}\n" for name in PARTS if name in sections]
        report.write_text("\n".join([f"{machine()}\n", *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
