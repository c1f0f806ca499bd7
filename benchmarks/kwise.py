"""K = 4 rankings at `tiny`: all pairs of a prompt at once, against the same pairs one by one.

    python benchmarks/kwise.py [--seeds 0 1 2]

Both learn from the same rankings for one epoch, with as many texts a batch (32), the same settings,
from the same SFT model; in a third way K-wise training reads texts whole, as it does with models
that keep no key-value cache. Prints the table that `benchmarks/kwise.md` keeps. Time: the ways take
turns batch by batch in one process, so that the ratio holds on a busy machine too. Memory and
accuracy (on the 2,000 test pairs): whole runs in processes of their own. About ten minutes a seed
on two cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from rlhf_helpers import kwise, reward_model, schemas, sft
from rlhf_helpers.evaluation import evaluate_reward_model
from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.scales import RewardConfig, Scale
from rlhf_helpers.sources import rankings_to_preferences

TEXTS = 32  # a batch
BATCHES = 40  # to measure time with
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
        pairs = rankings_to_preferences(schemas.read_rankings(data))
        data, size = folder / "pairs.jsonl", TEXTS // 2
        schemas.write_jsonl(data, pairs)
    return scale.config(
        "reward", data=data, seed=seed, output_dir=folder, batch_size=size,
        calibration_prompts=16,  # so that the peak of memory is the training's
    )  # fmt: skip


def measure_run(way: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one way: peak memory above the start's, and accuracy."""
    if way == "whole":
        kwise._can_share = lambda *_: False
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reward_model.train(settings(way, seed, folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    scorer = reward_model.RewardModel.from_pretrained(folder)
    test = schemas.read_preferences(Scale("tiny").data("preferences", "test"))
    accuracy = evaluate_reward_model(scorer, test)[0]
    names = {"gold": "accuracy_gold", "noisy": "accuracy_noisy"}
    return {"memory": peak / 1024, **{name: accuracy[key] for name, key in names.items()}}


def measure_apart(way: str, seed: int) -> dict[str, float]:
    """`measure_run` in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--seeds", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_time(folder: Path) -> pd.DataFrame:
    """`batches` an epoch and `seconds` a batch of each way, which take turns."""
    trainers, loaders, seconds = {}, {}, dict.fromkeys(WAYS, 0.0)
    for way in WAYS:
        config = settings(way, 0, folder)
        tokenizer = reward_model.append_eos(load_tokenizer(config.model), config.max_length)
        encode = reward_model.encode_pairs if way == "pairs" else reward_model.encode_rankings
        rows = encode(schemas.read_comparisons(config.data), tokenizer)
        trainers[way] = trainer = reward_model._trainer(config, rows, tokenizer)
        if way == "whole":
            trainer.shares_prompts = False
        trainer.create_optimizer()
        loaders[way] = trainer.get_train_dataloader()
    for number, batches in enumerate(zip(*loaders.values(), strict=False)):
        if number > BATCHES:
            break
        for (way, trainer), batch in zip(trainers.items(), batches, strict=True):
            started = time.perf_counter()
            trainer.compute_loss(trainer.model.train(), batch).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            seconds[way] += (time.perf_counter() - started) * (number > 0)  # the first warms up
    return pd.DataFrame(
        {
            "batches": {way: len(loader) for way, loader in loaders.items()},
            "seconds": {way: total / BATCHES for way, total in seconds.items()},
        }
    )


def table(runs: pd.DataFrame, times: pd.DataFrame) -> str:
    """One line a way."""
    epoch = times["batches"] * times["seconds"]
    lines = []
    for way, name in WAYS.items():
        mine = runs[runs["way"] == way]
        lines.append(
            {
                "": name,
                "batches": times.loc[way, "batches"],
                "seconds an epoch": f"{epoch[way]:.0f}",
                "times faster": f"{epoch['pairs'] / epoch[way]:.2f}",
                "peak memory, MB": f"{mine['memory'].mean():.0f}",
                "accuracy (gold), by seed": " ".join(f"{x:.3f}" for x in mine["gold"]),
                "mean": f"{mine['gold'].mean():.3f}",
                "accuracy (labels)": f"{mine['noisy'].mean():.3f}",
            }
        )
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--way", choices=WAYS, help="only this one, the first seed, as JSON")
    options = parser.parse_args()
    scale = Scale("tiny")
    if not (scale.dir("sft") / "metrics.json").exists():
        sft.train(scale.config("sft"))
    with tempfile.TemporaryDirectory() as folder:
        if options.way:
            print(json.dumps(measure_run(options.way, options.seeds[0], Path(folder))))
            return
        times = measure_time(Path(folder))
    print(times, flush=True)
    runs = []
    for seed in options.seeds:
        for way in WAYS:
            if way != "whole" or seed == options.seeds[0]:  # it learns what "kwise" learns
                runs.append({"way": way, "seed": seed, **measure_apart(way, seed)})
                print(runs[-1], flush=True)
    text = table(pd.DataFrame(runs), times)
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
