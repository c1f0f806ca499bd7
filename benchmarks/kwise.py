"""K = 4 rankings at `tiny`: all pairs of a prompt at once, against the same pairs one by one.

    python benchmarks/kwise.py [--seeds 0 1 2]

Both learn from the same rankings for one epoch, with as many texts a batch (32), the same settings,
from the same SFT model; in a third way K-wise training reads texts whole, as it does with models
that keep no key-value cache. Prints the table that `benchmarks/kwise.md` keeps.

Time: the ways take turns, batch by batch, in one process, so that the ratio holds on a busy machine
too. Memory: as many batches again, each way in a process of its own. Accuracy: whole runs, on the
2,000 test pairs. About eight minutes a seed on two cores.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rlhf_helpers import reward_model, schemas, sft
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.evaluation import evaluate_reward_model
from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.models.devices import matmul_precision
from rlhf_helpers.scales import Scale

TEXTS = 32  # a batch
BATCHES = 40  # to measure time and memory with
WAYS = {
    "pairs": "the pairs one by one",
    "whole": "K-wise, texts read whole",
    "kwise": "K-wise, prompt read once",
}


def settings(way: str, seed: int, folder: Path) -> RewardConfig:
    """The reward model's config at `tiny`, on rankings or on their pairs."""
    scale = Scale("tiny")
    data, size = scale.data("rankings", "train"), TEXTS // 4
    if way == "pairs":
        pairs = schemas.rankings_to_preferences(schemas.read_rankings(data))
        folder.mkdir(exist_ok=True)
        data, size = folder / "pairs.jsonl", TEXTS // 2
        schemas.write_jsonl(data, pairs)
    return scale.config("reward", data=data, seed=seed, output_dir=folder, batch_size=size)


def steps(way: str, folder: Path) -> Iterator[float]:
    """Train one way, a batch at a time; yields how many batches an epoch has, then seconds."""
    config = settings(way, 0, folder)
    tokenizer = reward_model.append_eos(load_tokenizer(config.model), config.max_length)
    encode = reward_model.encode_pairs if way == "pairs" else reward_model.encode_rankings
    rows = encode(schemas.read_comparisons(config.data), tokenizer)
    trainer = reward_model.reward_trainer(config, rows, tokenizer)
    if way == "whole":
        trainer.shares_prompts = False
    trainer.create_optimizer()
    batches = trainer.get_train_dataloader()
    yield len(batches)
    for batch in batches:
        started = time.perf_counter()
        trainer.compute_loss(trainer.model.train(), batch).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        yield time.perf_counter() - started


def measure_time(folder: Path) -> pd.DataFrame:
    """`batches` an epoch and `seconds` a batch of each way; they take turns."""
    running = {way: steps(way, folder) for way in WAYS}
    times = pd.DataFrame({"batches": {way: int(next(step)) for way, step in running.items()}})
    rounds = [{way: next(step) for way, step in running.items()} for _ in range(BATCHES + 1)]
    return times.assign(seconds=pd.DataFrame(rounds[1:]).mean())  # the first warms up


def measure_memory(way: str, folder: Path) -> float:
    """Peak memory of some batches, above what the imports took, in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    running = steps(way, folder)
    for _ in range(BATCHES + 1):
        next(running)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_apart(way: str) -> float:
    """`measure_memory` in a process of its own, which multiplies matrices as this one does."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", way],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "RLHF_MATMUL_PRECISION": matmul_precision()},
    )
    return float(done.stdout.splitlines()[-1])


def measure_accuracy(way: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one way for an epoch; the accuracies on the test pairs."""
    reward_model.train(settings(way, seed, folder))
    scorer = reward_model.RewardModel.from_pretrained(folder)
    test = schemas.read_preferences(Scale("tiny").data("preferences", "test"))
    return evaluate_reward_model(scorer, test)[0]


def table(times: pd.DataFrame, memory: dict[str, float], accuracy: pd.DataFrame) -> str:
    """One line a way. Texts read whole give the same model, so they have no accuracy."""
    epoch = times["batches"] * times["seconds"]
    lines = []
    for way, name in WAYS.items():
        mine = accuracy[accuracy["way"] == way]
        lines.append(
            {
                "": name,
                "batches": times.loc[way, "batches"],
                "seconds an epoch": f"{epoch[way]:.0f}",
                "times faster": f"{epoch['pairs'] / epoch[way]:.2f}",
                "peak memory, MB": f"{memory[way]:.0f}",
                "accuracy (gold), by seed": " ".join(f"{x:.3f}" for x in mine["accuracy_gold"]),
                "mean": f"{mine['accuracy_gold'].mean():.3f}" if len(mine) else "",
                "accuracy (labels)": f"{mine['accuracy_noisy'].mean():.3f}" if len(mine) else "",
            }
        )
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--memory", choices=WAYS, help="only the memory of this way")
    options = parser.parse_args()
    scale = Scale("tiny")
    if not (scale.dir("sft") / "metrics.json").exists():
        sft.train(scale.config("sft"))
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            print(measure_memory(options.memory, Path(folder)))
            return
        memory = {way: measure_apart(way) for way in WAYS}  # first: a child starts at our peak
        times = measure_time(Path(folder))
        print(times.assign(memory=memory), flush=True)
        rows = []
        for seed in options.seeds:
            for way in ("pairs", "kwise"):
                run = measure_accuracy(way, seed, Path(folder) / f"{way}{seed}")
                rows.append({"way": way, "seed": seed, **run})
    text = table(times, memory, pd.DataFrame(rows))
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
