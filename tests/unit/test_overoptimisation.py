"""Best-of-n: its KL and its expected scores, against brute force. And methods side by side."""

from itertools import combinations

import numpy as np
import pytest

from rlhf_helpers.evaluation import best_of_n, best_of_n_kl, best_of_n_row, compare_methods
from rlhf_helpers.little_world.annotators import gold_scores
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import read_prompts

BASE = Scale().base_model
PROMPTS = read_prompts(Scale().data("prompts", "test"))[:6]


def brute_force(proxy: np.ndarray, gold: np.ndarray, n: int) -> tuple[float, float]:
    """Every subset of n of one prompt's samples; of equal proxies each is chosen equally often."""
    best = []
    for subset in combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        chosen = [i for i in subset if proxy[i] == top]
        best.append((top, np.mean([gold[i] for i in chosen])))
    return tuple(np.mean(best, axis=0))


@pytest.mark.parametrize("ties", [False, True])
def test_expected_scores_are_the_mean_over_all_subsets(ties):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 3, 7))
    if ties:
        proxy = proxy.round()
        assert all(len(set(row)) < 7 for row in proxy)
    table = best_of_n(proxy, gold)
    assert table["n"].tolist() == list(range(1, 8))
    for n, row in table.set_index("n").iterrows():
        expected = np.array([brute_force(*pair, n) for pair in zip(proxy, gold, strict=True)])
        assert row[["proxy", "gold"]].tolist() == pytest.approx(expected.mean(0).tolist())
        errors = expected.std(0, ddof=1) / np.sqrt(3)
        assert row[["proxy_se", "gold_se"]].tolist() == pytest.approx(errors.tolist())


def test_best_of_one_is_the_mean_and_best_of_all_is_the_best():
    table = best_of_n([[3.0, 1.0, 2.0]], [[-1.0, 5.0, 8.0]])
    assert table["proxy"].tolist() == pytest.approx([2.0, 8 / 3, 3.0])
    assert table["gold"].tolist() == pytest.approx([4.0, (8 - 1 - 1) / 3, -1.0])
    assert table["gold_se"].isna().all()  # one prompt


def test_the_estimate_from_many_samples_is_unbiased():
    """N = 6 uniform samples a prompt: the best of n of them is n / (n + 1) in the mean."""
    proxy = np.random.default_rng(1).uniform(size=(20_000, 6))
    table = best_of_n(proxy, proxy**2)
    n = table["n"].to_numpy()
    assert (np.abs(table["proxy"] - n / (n + 1)) < 4 * table["proxy_se"]).all()
    assert (np.abs(table["gold"] - n / (n + 2)) < 4 * table["gold_se"]).all()


def test_a_thousand_samples_do_not_overflow():
    proxy = np.linspace(0, 1, 1001)[None]
    table = best_of_n(proxy, np.ones_like(proxy))
    assert table["gold"].tolist() == pytest.approx([1.0] * 1001)  # the weights sum to 1
    n = table["n"].to_numpy()
    expected = (n * 1002 / (n + 1) - 1) / 1000  # the mean maximum of n of 1 to 1001
    assert table["proxy"].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_kl_is_that_of_the_distribution_of_the_best(n):
    """By numbers: of many equally likely answers, ranked, the best of n."""
    answers = 20_000
    cumulative = (np.arange(answers + 1) / answers) ** n
    probability = np.diff(cumulative)
    kl = (probability * np.log(probability * answers)).sum()
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-3)


def test_the_kl_takes_many_n_at_once():
    assert best_of_n_kl([1, 2]).tolist() == pytest.approx([0, np.log(2) - 0.5])


@pytest.mark.parametrize(
    ("proxy", "gold"), [([1.0, 2.0], [1.0, 2.0]), ([[1.0, 2.0]], [[1.0]]), ([[]], [[]])]
)
def test_scores_must_be_prompts_by_samples(proxy, gold):
    with pytest.raises(ValueError, match=r"must be \(prompts, samples\)"):
        best_of_n(proxy, gold)


def test_scores_must_be_finite():
    with pytest.raises(ValueError, match="not finite"):
        best_of_n([[1.0, np.nan]], [[1.0, 1.0]])


# Methods side by side


def test_the_reference_ties_with_itself_and_has_gone_nowhere():
    again = BASE / ".." / BASE.name  # by another name, lest its own answers be taken
    row = compare_methods({"same": again}, BASE, PROMPTS, max_new_tokens=8).loc["same"]
    assert row["gain"] == row["gain_se"] == 0
    assert row["win_rate"] == 0.5
    assert row["kl"] == pytest.approx(0, abs=1e-4)


def test_best_of_one_is_the_reference_and_a_judge_of_gold_chooses_no_worse_with_more():
    rows = [best_of_n_row(BASE, gold_scores, PROMPTS, n, max_new_tokens=8, seed=3) for n in (1, 4)]
    assert rows[0]["gain"] == rows[0]["kl"] == 0
    assert rows[1]["gain"] > 0
    assert rows[1]["win_rate"] >= 0.5
    assert rows[1]["kl"] == pytest.approx(best_of_n_kl(4))
