"""Learning curve: the accuracy of the reward model by the size of its training data."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.evaluation import evaluate_reward_model
from rlhf_helpers.reward_model.model import RewardModel
from rlhf_helpers.reward_model.run import train
from rlhf_helpers.schemas import Preference, Ranking, ranking_to_pairs
from rlhf_helpers.sources import read_file


def learning_curve(
    config: RewardConfig,
    preferences: Sequence[Preference],
    sizes: Sequence[int | None],
    min_steps: int = 60,
) -> pd.DataFrame:
    """Train on the first records, for each of `sizes`, and evaluate on held-out preferences.

    None takes all. Small sizes are read again until there are `min_steps` steps, since a few steps
    teach nothing whatever the data. Columns: `records`, `pairs` (a ranking gives several),
    `epochs`, `seconds`, and the metrics of `evaluate_reward_model`. Models are written below
    `config.output_dir`.
    """
    records, rows = read_file(config.data, "preferences"), []
    for size in sizes:
        chosen = records[:size]
        epochs = max(config.epochs, min_steps * config.batch_size / len(chosen))
        folder = config.output_dir / f"{len(chosen)}_records"
        result = train(replace(config, pairs=size, epochs=epochs, output_dir=folder))
        scorer = RewardModel.from_pretrained(folder)
        metrics, _ = evaluate_reward_model(scorer, list(preferences), config.instruction)
        rows.append(
            {
                "records": len(chosen),
                "pairs": _count_pairs(chosen),
                "epochs": epochs,
                "seconds": result.metrics["seconds"],
                **{name: value for name, value in metrics.items() if name != "pairs"},
            }
        )
    return pd.DataFrame(rows)


def _count_pairs(records: Sequence[Preference] | Sequence[Ranking]) -> int:
    return sum(len(ranking_to_pairs(r)) if "candidates" in r else 1 for r in records)  # type: ignore
