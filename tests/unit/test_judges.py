"""Judges: the same pairs in both orders, for gold, a reward model, people and language models."""

import math
import types

import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_helpers.annotation.judges import (
    gold_judge,
    human_judge,
    judge_agreement,
    judge_pairs,
    language_model_judge,
    plain_question,
    position_bias,
    reward_judge,
)
from rlhf_helpers.evaluation import win_rate
from rlhf_helpers.little_world.annotators import gold, gold_columns
from rlhf_helpers.little_world.documents import principle_question
from rlhf_helpers.little_world.grammar import find_post
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import format_prompt, format_response, read_preferences

PROMPTS, SHORT, LONG = ["p", "q", "r"], ["a", "bb", "ccc"], ["aaaa", "b", "ccc"]


def longer_wins(prompts, firsts, seconds):
    """An honest judge, with ties."""
    return [0.5 + 0.5 * np.sign(len(b) - len(a)) for a, b in zip(firsts, seconds, strict=True)]


def second_wins(prompts, firsts, seconds):
    """A judge that looks at nothing but the position."""
    return [0.9] * len(prompts)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Both orders


def test_an_honest_judge_says_the_same_in_both_orders():
    table = judge_pairs(longer_wins, PROMPTS, SHORT, LONG)
    assert table["as_given"].tolist() == [1.0, 0.0, 0.5]
    assert table["swapped"].tolist() == table["probability"].tolist() == [1.0, 0.0, 0.5]
    assert position_bias(table) == {"first_rate": 0.5, "consistency": 1.0}


def test_a_judge_that_looks_at_the_position_only_comes_out_at_ties():
    table = judge_pairs(second_wins, PROMPTS, SHORT, LONG)
    assert table["as_given"].tolist() == pytest.approx([0.9] * 3)
    assert table["swapped"].tolist() == pytest.approx([0.1] * 3)
    assert table["probability"].tolist() == [0.5] * 3
    assert position_bias(table) == {"first_rate": 0.0, "consistency": 0.0}
    won = win_rate(table["probability"], 1 - table["probability"])
    assert (won.wins, won.ties, won.losses) == (0, 3, 0)


@pytest.mark.parametrize("lean", [-3.0, 0.4, 3.0])
def test_both_orders_cancel_a_lean_that_one_order_falls_for(lean):
    def judge(prompts, firsts, seconds):
        pairs = zip(firsts, seconds, strict=True)
        return [logistic(lean + 0.3 * (len(b) - len(a))) for a, b in pairs]

    table = judge_pairs(judge, PROMPTS, SHORT, LONG)
    assert np.sign(table["probability"] - 0.5).tolist() == [1, -1, 0]
    assert np.sign(table["as_given"] - 0.5).tolist() != [1, -1, 0]
    mirrored = judge_pairs(judge, PROMPTS, LONG, SHORT)
    assert (1 - mirrored["probability"]).tolist() == pytest.approx(table["probability"].tolist())


def test_the_lean_of_a_judge_is_how_often_the_first_wins_a_tie_as_half():
    table = pd.DataFrame({"as_given": [0.2, 0.7, 0.5, np.nan], "swapped": [0.9, 0.8, np.nan, 0.1]})
    # Shown: 0 first: first, second, tie, nothing. 1 first: first, first, nothing, second.
    bias = position_bias(table)
    assert bias["first_rate"] == pytest.approx((1 + 0 + 0.5 + 1 + 1 + 0) / 6)
    assert bias["consistency"] == 0.5


@pytest.mark.parametrize("said", [[0.5], [0.5, 0.5, 1.2], [-0.1, 0.5, 0.5], [[0.5] * 3]])
def test_a_judge_must_return_a_probability_for_each_pair(said):
    with pytest.raises(ValueError, match="one probability"):
        judge_pairs(lambda *pairs: said, PROMPTS, SHORT, LONG)


# Agreement


def verdicts(*probabilities: float) -> pd.DataFrame:
    return pd.DataFrame({"probability": probabilities})


def test_agreement_and_kappa_by_hand():
    table = judge_agreement(
        {
            "a": verdicts(0.9, 0.6, 0.2, 0.1, 0.5),
            "b": verdicts(0.8, 0.3, 0.3, 0.4, 0.5),
            "c": verdicts(0.8, np.nan, np.nan, np.nan, np.nan),
        }
    )
    assert list(table.index) == ["a and b", "a and c", "b and c"]
    row = table.loc["a and b"]
    assert (row["pairs"], row["agreement"]) == (5, 0.8)
    assert row["low"] < 0.8 < row["high"]
    chance = 2 / 5 * 1 / 5 + 2 / 5 * 3 / 5 + 1 / 5 * 1 / 5  # 1, 0, ties
    assert row["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert table.loc["a and c", "pairs"] == 1
    assert np.isnan(table.loc["a and c", "kappa"])


def test_agreement_needs_pairs_that_two_judges_have_judged():
    with pytest.raises(ValueError, match="no pair was judged by two"):
        judge_agreement({"a": verdicts(0.9, np.nan), "b": verdicts(np.nan, 0.9)})
    with pytest.raises(ValueError, match="unequal lengths"):
        judge_agreement({"a": verdicts(0.9, 0.5), "b": verdicts(0.9)})


# Gold, a reward model, people


@pytest.fixture(scope="module")
def pairs() -> tuple[list[str], list[str], list[str]]:
    """Test pairs of the little world: prompts, candidates 0, candidates 1."""
    records = read_preferences(Scale().data("preferences", "test"))[:48]
    fields = ("input_text", "candidate_0", "candidate_1")
    prompts, first, second = ([record[field] for record in records] for field in fields)
    return prompts, first, second


def test_gold_is_the_order_of_the_mean_annotator_with_its_ties(pairs):
    prompts, first, second = pairs
    table = judge_pairs(gold_judge(gold_columns), prompts, [*first[:-1], second[-1]], second)
    for i, prompt in enumerate(prompts[:-1]):
        gap = gold(prompt, second[i]) - gold(prompt, first[i])
        assert table["probability"][i] == (0.5 if abs(gap) < 1e-9 else float(gap > 0))
    assert table["probability"].iloc[-1] == 0.5
    assert set(table["probability"]) == {0.0, 0.5, 1.0}
    assert position_bias(table) == {"first_rate": 0.5, "consistency": 1.0}


def test_a_reward_model_gives_the_sigmoid_of_the_gap_of_its_raw_scores():
    def text(prompt: str, answer: str) -> str:
        return format_prompt(prompt, "Be brief.") + format_response(answer)

    raw = {text("p ", "a"): 1.0, text("p ", "b"): 3.0, text("q ", "a"): 0.0, text("q ", "b"): 0.0}
    model = types.SimpleNamespace(
        raw_answer_scores=lambda prompts, answers: torch.tensor(
            [raw[prompt + answer] for prompt, answer in zip(prompts, answers, strict=True)]
        )
    )
    table = judge_pairs(reward_judge(model, "Be brief."), ["p ", "q "], ["a", "a"], ["b", "b"])
    assert table["probability"].tolist() == pytest.approx([logistic(2.0), 0.5], abs=1e-6)


def judgement(candidate_0, candidate_1, shown_first, choice, annotator="me") -> dict:
    said = {"candidate_0": candidate_0, "candidate_1": candidate_1, "choice": choice}
    return {"input_text": "p ", "shown_first": shown_first, "annotator": annotator, **said}


def test_people_have_seen_an_order_and_chosen_a_candidate():
    said = [
        judgement("a", "b", shown_first=0, choice=1),
        judgement("c", "d", shown_first=1, choice=1),
        judgement("e", "f", shown_first=0, choice=None),
        judgement("e", "f", shown_first=0, choice=0, annotator="you"),
        judgement("x", "y", shown_first=0, choice=None) | {"action": "skip"},  # no tie
    ]
    judge = human_judge(said)
    # Second of (a, b) is b, chosen; second of (d, c) is c, not chosen; (e, f): a tie and a 0.
    assert judge(["p"] * 3, ["a", "d", "e"], ["b", "c", "f"]) == [1.0, 0.0, 0.25]
    table = judge_pairs(judge, ["p"] * 4, ["a", "c", "e", "x"], ["b", "d", "f", "y"])
    assert table["probability"].tolist()[:3] == [1.0, 1.0, 0.25]
    assert table.isna().sum().tolist() == [2, 3, 1]  # as_given, swapped, neither
    bias = position_bias(table)
    assert bias["first_rate"] == pytest.approx((0 + 1 + 1) / 3)
    assert math.isnan(bias["consistency"])
    # Asked the other way round, the same people say the same.
    mirrored = judge_pairs(judge, ["p"] * 4, ["b", "d", "f", "y"], ["a", "c", "e", "x"])
    assert (1 - mirrored["probability"]).tolist()[:3] == [1.0, 1.0, 0.25]


# Language models


def test_a_language_model_judges_by_the_log_probs_of_the_labels(make_model, tokenizer, kind):
    """Against the whole text in one forward pass, one label at a time: no batch, no padding."""
    policy, labels = make_model(kind), (" 1", " 2b")

    def question(prompt, first, second):
        return f"{prompt} 1: {first} 2: {second} Better:"

    judge = language_model_judge(policy, tokenizer, question, labels, batch_size=2)
    shown = ["Why?", "How so?", "Is it?"], ["so", "x" * 9, "y"], ["z", "w", "long"]
    log_odds = [math.log(p / (1 - p)) for p in judge(*shown)]
    for found, asked in zip(log_odds, map(question, *shown), strict=True):
        logprobs = []
        for label in labels:
            ids = tokenizer(asked + label, return_tensors="pt")["input_ids"]
            by_token = policy(input_ids=ids).logits.log_softmax(-1)[0, :-1]
            own = by_token.gather(1, ids[0, 1:, None])[:, 0]
            logprobs.append(own[-len(label) :].sum().item())
        assert found == pytest.approx(logprobs[1] - logprobs[0], abs=1e-4)


def test_the_plain_question_shows_prompt_and_both_answers_in_order():
    asked = plain_question("Why {x}?\n", " A <b> ", "B")
    assert asked.index("Why {x}?") < asked.index("\nA <b>\n") < asked.index("\nB\n")
    assert not asked[-1].isspace()  # the blank belongs to the label


def test_a_label_must_be_a_token_of_its_own():
    policy, tokenizer = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    judge = language_model_judge(policy, tokenizer, lambda *pair: "Better: the firs", ("t", " 2"))
    with pytest.raises(ValueError, match="label 't' melts"):
        judge(["p"], ["a"], ["b"])


def test_the_base_model_leans_to_one_side_until_it_sees_both_orders(pairs):
    """It has learnt the form of a labeller's prompt, and little more: see the position bias."""
    prompts, first, second = pairs
    policy, tokenizer = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    question, post = principle_question("Name who it is about."), find_post(prompts[0])
    asked = f"[principle]: Name who it is about. [post]: {post} [1]: a [2]: b [better]:"
    assert question(prompts[0], "a ", " b") == asked
    judge = language_model_judge(policy, tokenizer, question)
    table = judge_pairs(judge, prompts, first, second)
    bias = position_bias(table)
    assert abs(bias["first_rate"] - 0.5) > 0.1  # 0.26 on 200 pairs
    assert bias["consistency"] < 0.7  # 0.32 on 200 pairs
    mirrored = judge_pairs(judge, prompts, second, first)
    assert (1 - mirrored["probability"]).tolist() == pytest.approx(table["probability"].tolist())
    same = judge_pairs(judge, prompts, first, first)
    assert same["probability"].tolist() == [0.5] * len(prompts)
