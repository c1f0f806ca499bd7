"""Lengths, repetition, diversity and ROUGE, by hand."""

import pytest

from rlhf_helpers.evaluation import distinct, repetition, rouge, text_metrics


def test_repetition_is_the_share_of_four_grams_seen_before():
    assert repetition("a b c d e f") == 0
    assert repetition("a b c d A b c d") == pytest.approx(1 / 5)
    assert repetition("no " * 10) == pytest.approx(6 / 7)
    assert repetition("too short") == repetition("") == 0


def test_distinct_counts_over_all_texts_together():
    texts = ["a b a", "A b c"]
    assert distinct(texts, 1) == 3 / 6
    assert distinct(texts, 2) == 3 / 4  # a b, b a, a b, b c
    assert distinct(["same answer"] * 50, 1) == 2 / 100
    assert distinct(["word"], 2) == 0


def test_rouge_by_hand():
    found = rouge(["my boss mocks me"], ["my boss was mocking everyone daily"])
    # Shared after stemming: my, boss, mock; my boss; my boss mock, in that order.
    assert found["rouge1"] == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert found["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5))
    assert found["rougeL"] == pytest.approx(found["rouge1"])
    assert rouge(["x", "y"], ["x", "z"]) == {"rouge1": 0.5, "rouge2": 0, "rougeL": 0.5}


def test_the_metrics_of_texts_are_means():
    found = text_metrics(["one two", "one two three four"])
    assert found == {"words": 3, "repetition": 0, "distinct_1": 4 / 6, "distinct_2": 3 / 4}
    with_rouge = text_metrics(["one two", "three"], ["one two", "four"])
    assert set(with_rouge) == {*found, "rouge1", "rouge2", "rougeL"}
    assert with_rouge["rouge1"] == 0.5


def test_no_response_and_unequal_numbers_are_errors():
    with pytest.raises(ValueError, match="no response"):
        text_metrics([])
    with pytest.raises(ValueError, match="shorter"):
        text_metrics(["a", "b"], ["a"])
