"""The second task at `tiny` with three seeds: how far PPO raises gold over SFT.

    python benchmarks/autocomplete.py [--seeds 0 1 2]

Takes about four minutes a seed on two cores; stages that are in `runs/tiny/autocomplete/` already
are not trained again. Prints the table that `benchmarks/autocomplete.md` keeps; everything is
measured on the test split. `gain_in_sd` is `gold_gain` in standard deviations of the SFT samples'
gold.
"""

from chain import evaluate, main

from rlhf_helpers.evaluation import evaluate_reward_model, standard_error
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import read_preferences
from rlhf_helpers.stages import train_missing


def measure_seed(seed: int) -> dict[str, float]:
    """Train what is missing and evaluate it with one seed; one column of the table."""
    scale = Scale("tiny", "autocomplete", seed)
    train_missing(scale, "sft", "reward", "ppo")
    scorer = RewardModel.from_pretrained(scale.dir("reward"))
    accuracy, _ = evaluate_reward_model(scorer, read_preferences(scale.data("preferences", "test")))
    sft, ppo = (evaluate(scale, stage, scorer, 1.0) for stage in ("sft", "ppo"))
    gain = ppo[1]["gold"] - sft[1]["gold"]
    row = {name: accuracy[name] for name in ("accuracy_noisy", "accuracy_gold", "accuracy_clear")}
    row |= {"gold_sft": sft[0]["gold"], "gold_ppo": ppo[0]["gold"]}
    row |= {
        "gold_gain": gain.mean(),
        "gold_gain_se": standard_error(gain),
        "gold_sft_sd": sft[1]["gold"].std(),
        "gain_in_sd": gain.mean() / sft[1]["gold"].std(),
    }
    for name in ("covered", "wrong", "unkind", "words", "eos_rate"):
        row |= {f"{name}_sft": sft[0][name], f"{name}_ppo": ppo[0][name]}
    return row | {"reward_gain_sd": ppo[0]["reward"] - sft[0]["reward"], "kl": ppo[0]["kl"]}


if __name__ == "__main__":
    main(measure_seed, __file__, __doc__)
