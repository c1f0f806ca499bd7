"""Ensembles, a price on length, averaged weights and early stopping."""

import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppo_helpers import properties

from rlhf_helpers.models.averaging import average_weights
from rlhf_helpers.ppo.early_stop import EarlyStop
from rlhf_helpers.rewards import Ensemble, Reward, words_over

SCORES = st.integers(2, 5).flatmap(
    lambda m: st.lists(st.lists(st.floats(-9, 9), min_size=m, max_size=m), min_size=1, max_size=4)
)


@given(SCORES, st.floats(0, 3))
@properties
def test_an_ensemble_combines_the_scores_of_each_text_as_its_rule_says(rows, deviations):
    models = [lambda texts, m=m: [row[m] for row in rows] for m in range(len(rows[0]))]
    texts = ["text"] * len(rows)
    expected = {
        "mean": [fmean(row) for row in rows],
        "deviation": [fmean(row) - deviations * pstdev(row) for row in rows],
        "quantile": [min(row) for row in rows],
    }
    for rule, scores in expected.items():
        found = Ensemble(models, rule, quantile=0.0, deviations=deviations)(texts)
        assert found == pytest.approx(scores, rel=1e-4, abs=1e-4)


def test_a_quantile_lies_between_the_scores():
    models = [lambda texts, m=m: [float(m)] for m in range(5)]
    assert Ensemble(models, "quantile", quantile=0.25)(["text"]) == [1.0]
    assert Ensemble(models, "quantile", quantile=0.5)(["text"]) == [2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([len, len], "median"), "rule is 'median': it must be one of mean, quantile, deviation"),
        (([len],), "an ensemble needs two models or more, not 1"),
        (([],), "an ensemble needs two models or more, not 0"),
    ],
)
def test_an_ensemble_that_cannot_be_one_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(*arguments)
    with pytest.raises(ValueError, match="quantile is 2: it must be a number from 0 to 1"):
        Ensemble([len, len], quantile=2)


def test_an_ensemble_disliked_by_one_model_is_worth_less_than_its_mean():
    models = [lambda texts: [1.0, 3.0], lambda texts: [1.0, -1.0]]
    agreed, disputed = Ensemble(models, "deviation")(["a", "b"])
    assert (agreed, disputed) == (1.0, -1.0) and Ensemble(models)(["a", "b"]) == [1.0, 1.0]


def test_words_over_a_limit_have_a_price():
    reward = Reward("length", words_over(3), -0.5)
    answers = ["one two three", "one two three four five", ""]
    assert reward(["x"] * 3, ["p"] * 3, answers, [{}] * 3) == [0.0, 2.0, 0.0]


def test_the_average_of_models_has_the_average_of_their_weights(make_model):
    first, second = (make_model("opt", seed=seed).eval() for seed in (0, 1))
    before = {name: weight.clone() for name, weight in first.named_parameters()}
    average = average_weights([first, second])
    weighted = average_weights([first, second], [0.25, 0.75])
    for name, other in second.named_parameters():
        own = before[name]
        torch.testing.assert_close(average.get_parameter(name), (own + other) / 2)
        torch.testing.assert_close(weighted.get_parameter(name), 0.25 * own + 0.75 * other)
        assert first.get_parameter(name).equal(own)
    same = average_weights([first.eval()] * 3)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(same(ids).logits, first(ids).logits)


def test_models_that_do_not_fit_together_are_not_averaged(make_model):
    opt = make_model("opt")
    with pytest.raises(ValueError, match=r"the models differ in .*: average models of the same"):
        average_weights([opt, make_model("opt", num_hidden_layers=1)])
    with pytest.raises(ValueError, match="the models differ in "):
        average_weights([make_model("opt", num_hidden_layers=1), opt])
    for models, shares in (([], None), ([opt], [0.5]), ([opt, opt], [1.0])):
        with pytest.raises(ValueError, match="models need as many shares that sum to 1"):
            average_weights(models, shares)


@given(st.lists(st.floats(-5, 5), min_size=1), st.integers(1, 4))
@properties
def test_it_stops_after_so_many_values_that_are_no_better(values, patience):
    stop = EarlyStop(patience)
    for n, value in enumerate(values, 1):
        stopped = stop(value)
        best = max(values[:n])
        assert (stop.best, stop.best_at) == (best, values.index(best))
        assert stopped == (n - 1 - values.index(best) >= patience)
        if stopped:
            break


def test_a_measure_that_is_no_number_and_a_patience_that_is_none_are_refused():
    with pytest.raises(ValueError, match="patience is 0"):
        EarlyStop(0)
    with pytest.raises(ValueError, match="the held-out measure is nan"):
        EarlyStop(1)(math.nan)
