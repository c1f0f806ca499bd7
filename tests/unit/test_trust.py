"""Whether a reward model can be trusted: every measure on scores whose truth is known."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from rlhf_helpers import plots
from rlhf_helpers.configs import RewardConfig
from rlhf_helpers.evaluation import trust, wilson_interval
from rlhf_helpers.little_world.annotators import fault_columns, gold
from rlhf_helpers.reward_model import label_noise
from rlhf_helpers.reward_model.learning_curve import learning_curve
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import write_jsonl

POST = (
    "r/work: I (30F) have a problem with my chief. My boss makes jokes about my accent in "
    "meetings. This has gone on for two years. I barely sleep these days. To be fair, I yelled at "
    "them once and that was useless. What gets me is that nothing helps. Should I just leave? "
    "[summary]: "
)
PERFECT = "My boss mocks my accent, tried yelling."
MISSING = "Someone mocks my accent, tried yelling."
WRONG = "My manager mocks my accent, tried yelling."
RAMBLING = "So my boss mocks my accent, tried yelling."


def pair(first: str, second: str, choice: int = 0, **fields) -> dict:
    record = {"input_text": POST, "candidate_0": first, "candidate_1": second, "choice": choice}
    return record | fields


def drawn(count: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaps of scores, and choices that follow Bradley-Terry exactly."""
    rng = np.random.default_rng(seed)
    gaps = rng.normal(scale=2, size=count)
    return gaps, rng.random(count) < expit(gaps)


# Calibration


def test_probabilities_come_from_the_raw_gap():
    table = pd.DataFrame({"score_0": [0.0, 1.0], "score_1": [2.0, 0.0]})
    model = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(reward_std=0.5)))
    expected = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(0.5))]
    assert trust.preference_probabilities(model, table).tolist() == pytest.approx(expected)


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has():
    gaps, choices = drawn()
    assert trust.expected_calibration_error(expit(gaps), choices) < 0.02
    assert trust.expected_calibration_error(expit(5 * gaps), choices) > 0.1
    assert trust.expected_calibration_error(expit(-gaps), choices) > 0.4


def test_the_calibration_error_by_hand():
    probabilities = [0.05, 0.08, 0.95, 0.95, 0.1, 0.15]
    outcomes = [0, 1, 1, 1, 0, 0]
    # Bins up to and with 0.1, up to 0.2, and the last; empty ones are left out.
    table = trust.calibration_table(probabilities, outcomes)
    assert table["pairs"].tolist() == [3, 1, 2]
    assert table["predicted"].tolist() == pytest.approx([0.23 / 3, 0.15, 0.95])
    assert table["observed"].tolist() == pytest.approx([1 / 3, 0, 1])
    error = (3 * (1 / 3 - 0.23 / 3) + 0.15 + 2 * 0.05) / 6
    assert trust.expected_calibration_error(probabilities, outcomes) == pytest.approx(error)


def test_precision_recall_and_f1_of_candidate_1_is_better():
    found = trust.classification_metrics([0.9, 0.8, 0.7, 0.2, 0.1], [1, 1, 0, 1, 0])
    assert found["precision"] == found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3) and found["accuracy"] == pytest.approx(3 / 5)
    assert set(found) == {"accuracy", "precision", "recall", "f1", "calibration_error"}


# Where it is right


def test_accuracy_in_groups_with_intervals():
    table = trust.accuracy_by([True, True, False, False], ["a", "a", "a", None])
    assert list(table.index) == ["a"]
    assert table.loc["a", "pairs"] == 3 and table.loc["a", "accuracy"] == pytest.approx(2 / 3)
    assert tuple(table.loc["a", ["low", "high"]]) == pytest.approx(wilson_interval(2, 3))


def test_pairs_in_gold_order_leave_ties_out():
    columns = {"score_0": [0.0, 0.0, 0.0], "score_1": [1.0, 1.0, 1.0]}
    table = pd.DataFrame(columns | {"gold_0": [1.0, 1.0, 1.0], "gold_1": [2.0, 1.0, 0.5]})
    ordered = trust.in_gold_order(table)
    assert ordered.index.tolist() == [0, 2]
    assert ordered["correct"].tolist() == [True, False]
    assert ordered["gap"].tolist() == [1.0, -0.5]


def lengthy(count: int = 4000) -> tuple[pd.DataFrame, list[dict], np.ndarray]:
    """Pairs whose better candidate tends to be longer, but not for that reason."""
    rng = np.random.default_rng(0)
    gap = rng.normal(size=count)
    words = np.clip(np.round(3 * gap + rng.normal(scale=3, size=count)), -20, 20).astype(int)
    records = [
        pair("word " * 25, "word " * (25 + w), choice=int(g > 0))
        for w, g in zip(words, gap, strict=True)
    ]
    zeros = np.zeros(count)
    table = pd.DataFrame({"score_0": zeros, "score_1": gap, "gold_0": zeros, "gold_1": gap})
    return table.assign(choice=(gap > 0).astype(int)), records, words


def test_a_just_model_owes_nothing_to_length_once_gold_is_given():
    table, records, words = lengthy()
    assert trust.word_gaps(records).tolist() == words.tolist()
    noise = np.random.default_rng(1).normal(scale=0.5, size=len(table))
    found = trust.length_bias(table.assign(score_1=table["gold_1"] + noise), records)
    assert found["correlation"] > 0.5
    assert abs(found["given_gold"]) < 0.05
    assert found["accuracy_controlled"] > 0.8


def test_a_model_that_counts_words_is_found_out():
    table, records, words = lengthy()
    found = trust.length_bias(table.assign(score_1=words.astype(float)), records)
    assert found["correlation"] == pytest.approx(1)
    assert found["given_gold"] > 0.95
    assert found["accuracy_controlled"] == pytest.approx(0.5, abs=0.01)
    without_gold = table.drop(columns=["gold_0", "gold_1"]).assign(score_1=words.astype(float))
    found = trust.length_bias(without_gold, records)
    assert "given_gold" not in found
    assert found["accuracy_controlled"] == pytest.approx(0.5, abs=0.01)


def test_accuracy_by_fault_tells_which_mistakes_a_model_makes():
    too_long = PERFECT.replace("yelling.", "yelling, " + "tried yelling, " * 9 + "tried yelling.")
    records = [
        pair(PERFECT, MISSING),
        pair(MISSING, PERFECT),
        pair(PERFECT, WRONG),
        pair(RAMBLING, PERFECT),
        pair(PERFECT, too_long),
        pair(PERFECT, PERFECT.replace(", tried", ". I tried")),  # a tie
    ]
    scores = {"score_0": [1, 1, 0, 0, 0, 0], "score_1": [0, 0, 1, 1, 1, 1]}
    worth = {f"gold_{i}": [gold(POST, r[f"candidate_{i}"]) for r in records] for i in (0, 1)}
    found = trust.accuracy_by_fault(pd.DataFrame(scores | worth), records, fault_columns)
    faults = ["missing fact", "beside the point", "wrong fact", "too long", "rambling"]
    assert list(found.index) == faults
    # The wrong fact stands in the place of a right one, so that it is missing too.
    assert found["pairs"].tolist() == [3, 0, 1, 1, 2]
    assert found["alone"].tolist() == [2, 0, 0, 0, 1]
    assert found["accuracy"].tolist() == pytest.approx([1 / 3, math.nan, 0, 0, 1 / 2], nan_ok=True)
    assert found.loc["missing fact", "accuracy_alone"] == 0.5
    assert found.loc["rambling", "accuracy_alone"] == 1
    assert math.isnan(found.loc["too long", "accuracy_alone"])


# Training again and again


def config(folder, records: list[dict]) -> RewardConfig:
    write_jsonl(folder / "pairs.jsonl", records)
    write_jsonl(folder / "prompts.jsonl", [{"input_text": f"number {i}"} for i in range(4)])
    base = Scale().base_model
    return RewardConfig(
        model=base,
        sft_model=base,
        data=folder / "pairs.jsonl",
        prompts=folder / "prompts.jsonl",
        output_dir=folder / "out",
        batch_size=8,
        max_length=32,
        max_new_tokens=4,
        warmup_steps=0,
    )


def toy(count: int = 40) -> list[dict]:
    """Pairs of `yes` and `no`; `yes` is better."""
    words = [("yes", "no"), ("no", "yes")]
    return [
        {
            "input_text": "a post",
            "candidate_0": f"{words[i % 2][0]} {i}",
            "candidate_1": f"{words[i % 2][1]} {i}",
            "choice": i % 2,
        }
        for i in range(count)
    ]


def test_a_learning_curve_trains_every_size_for_long_enough(tmp_path):
    held_out = [{**record, "input_text": "another post"} for record in toy(20)]
    table = learning_curve(config(tmp_path, toy()), held_out, (8, None), min_steps=6)
    assert table["records"].tolist() == table["pairs"].tolist() == [8, 40]
    assert table["epochs"].tolist() == pytest.approx([6, 1.2])
    assert table["accuracy_noisy"].iloc[-1] > 0.9
    assert (tmp_path / "out" / "8_records" / "model.safetensors").exists()


def test_a_learning_curve_over_rankings_counts_their_pairs(tmp_path):
    ranking = {"input_text": "a", "candidates": ["b", "c", "d"], "ranking": [0, [1, 2]]}
    table = learning_curve(config(tmp_path, [ranking] * 4), toy(4), (2, 4), min_steps=1)
    assert table["records"].tolist() == [2, 4]
    assert table["pairs"].tolist() == [4, 8]


# Wrong labels


def test_flipping_turns_the_share_that_was_asked_for():
    records = toy(50)
    turned, flipped = label_noise.flip_labels(records, 0.2, seed=3)
    assert flipped.sum() == 10
    assert [t["choice"] != r["choice"] for t, r in zip(turned, records, strict=True)] == list(
        flipped
    )
    again, _ = label_noise.flip_labels(records, 0.2, seed=3)
    assert again == turned and label_noise.flip_labels(records, 0.2, seed=4)[0] != turned


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.35])
@pytest.mark.parametrize("sharpness", [0.2, 1.0])
def test_the_flip_rate_is_found_beside_the_noise_of_bradley_and_terry(share, sharpness):
    gaps, choices = drawn()
    gaps = np.where(choices, gaps, -gaps)  # chosen minus rejected
    flipped = np.random.default_rng(1).random(len(gaps)) < share
    gaps = np.where(flipped, -gaps, gaps) * sharpness  # a model trained on noise is less sharp
    assert label_noise.flip_rate(gaps) == pytest.approx(share, abs=0.02)
    if share:
        assert (gaps < 0).mean() > share + 0.05  # what counting disagreements would say
        assert roc_auc_score(flipped, -gaps) > 0.7
        worst = label_noise.most_suspect(gaps, 200)
        assert len(worst) == 200 and (np.diff(gaps[worst]) >= 0).all()
        assert flipped[worst].mean() > 2 * share


def test_what_a_model_gets_wrong_itself_is_not_put_down_to_the_labels():
    rng = np.random.default_rng(2)
    gaps, choices = drawn()
    gaps = np.where(choices, gaps, -gaps)
    gaps = np.where(rng.random(len(gaps)) < 0.1, -gaps, gaps)  # the model is wrong, however sure
    flipped = np.where(rng.random(len(gaps)) < 0.2, -gaps, gaps)
    assert label_noise.flip_rate(flipped[:10_000]) > 0.23
    assert label_noise.flip_rate(flipped[:10_000], gaps[10_000:]) == pytest.approx(0.2, abs=0.02)
    assert label_noise.flip_rate(gaps[:10_000], gaps[10_000:]) < 0.02


def test_labels_are_judged_by_models_that_have_not_seen_them(tmp_path):
    records, flipped = label_noise.flip_labels(toy(60), 0.1)
    settings = config(tmp_path, records)
    settings.epochs = 3.0
    gaps = label_noise.cross_fit(settings, records)
    seen = [
        {line["candidate_0"] for line in labels_of(tmp_path / "out" / f"fold_{fold}")}
        for fold in (0, 1)
    ]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 60
    assert roc_auc_score(flipped, -gaps) > 0.9


def labels_of(folder) -> list[dict]:
    from rlhf_helpers.schemas import read_preferences

    return read_preferences(folder / "pairs.jsonl")


# Figures


def test_the_figures_show_the_tables():
    gaps, choices = drawn(2000)
    table = trust.calibration_table(expit(gaps), choices)
    axes = plots.calibration(table)
    assert axes.lines[1].get_ydata() == pytest.approx(table["observed"])
    rows = {"pairs": [100, 1000], "accuracy_gold": [0.6, 0.8]}
    rows |= {"accuracy_gold_low": [0.5, 0.75], "accuracy_gold_high": [0.7, 0.85]}
    axes = plots.learning_curve(pd.DataFrame(rows))
    assert axes.get_xscale() == "log"
    assert list(axes.containers[0].lines[0].get_ydata()) == [0.6, 0.8]
