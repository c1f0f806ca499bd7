"""Evaluation: intervals, and policies and reward models whose numbers are known by hand."""

import itertools
import math
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import rlhf_helpers
from rlhf_helpers import generation
from rlhf_helpers.evaluation import (
    evaluate_policy,
    evaluate_reward_model,
    label_ceiling,
    recipe_gold,
    side_by_side,
    standard_error,
    temperature_curve,
    wilson_interval,
    win_rate,
)
from rlhf_helpers.evaluation import metrics as generic
from rlhf_helpers.generation import Responses
from rlhf_helpers.little_world.annotators import ANNOTATORS, choose, measure
from rlhf_helpers.little_world.grammar import as_input_text, draw_posts, find_post, read_post
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import (
    DataError,
    format_prompt,
    format_response,
    read_preferences,
    write_jsonl,
)

POST = (
    "r/work: I (30F) have a problem with my chief. My boss makes jokes about my accent in "
    "meetings. This has gone on for two years. I barely sleep these days. To be fair, I yelled at "
    "them once and that was useless. The worst part is how long it has been. Should I just leave? "
    "[summary]: "
)
# Gold: 4.5; also 4.5; 4.5 less the relation, 1.1 / 3; relation and problem alone, 1.4.
PERFECT = "My boss mocks my accent for two years."
AS_GOOD = "My boss mocks my accent (two years)."
CLOSE = "Someone mocks my accent for two years."
SHORT = "My boss mocks my accent."
GOLD = {PERFECT: 4.5, AS_GOOD: 4.5, CLOSE: 4.5 - 1.1 / 3, SHORT: 1.4}


def scorer(scores: dict[str, float], prompt: str = format_prompt(POST)):
    """A reward model that knows what each response to one prompt scores."""
    whole = {prompt + format_response(text): score for text, score in scores.items()}
    return lambda texts: [whole[text] for text in texts]


# Intervals


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_newcombe(successes, trials, low, high):
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((low, high), abs=6e-5)
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]))


def test_wilson_intervals_stay_within_0_and_1_and_hold_the_share():
    for trials in (1, 2, 10, 500):
        for successes in {0, 1, trials // 2, trials}:
            low, high = wilson_interval(successes, trials)
            assert -1e-12 <= low <= successes / trials + 1e-12
            assert successes / trials - 1e-12 <= high <= 1 + 1e-12


def test_the_standard_error_of_a_mean():
    assert standard_error(pd.Series([1.0, 2.0, 3.0, 4.0])) == pytest.approx(math.sqrt(5 / 3) / 2)


# Reward models


def preference(first: str, second: str, choice: int, input_text: str = POST) -> dict:
    return {
        "input_text": input_text,
        "candidate_0": first,
        "candidate_1": second,
        "choice": choice,
    }


PAIRS = [
    preference(PERFECT, SHORT, 0),  # clear; the model and the label are right
    preference(CLOSE, PERFECT, 1),  # close; the model is wrong
    preference(PERFECT, AS_GOOD, 1),  # a tie; the model agrees with the label
    preference(SHORT, AS_GOOD, 0),  # clear; the model is right, the label is noise
]
SCORES = {PERFECT: 1.0, AS_GOOD: 2.0, CLOSE: 1.5, SHORT: -1.0}


def test_accuracy_against_labels_against_gold_and_where_it_is_clear():
    metrics, table = evaluate_reward_model(scorer(SCORES), PAIRS)
    assert metrics["pairs"] == 4
    assert metrics["accuracy_noisy"] == 2 / 4
    assert metrics["accuracy_gold"] == pytest.approx(2 / 3)  # the tie is left out
    assert metrics["accuracy_clear"] == 2 / 2
    for name, successes, trials in (("noisy", 2, 4), ("gold", 2, 3), ("clear", 2, 2)):
        interval = (metrics[f"accuracy_{name}_low"], metrics[f"accuracy_{name}_high"])
        assert interval == wilson_interval(successes, trials)
    assert list(table["score_0"]) == [1.0, 1.5, 1.0, -1.0]
    assert list(table["score_1"]) == [-1.0, 1.0, 2.0, 2.0]
    assert list(table["choice"]) == [0, 1, 1, 0]
    for i in (0, 1):
        expected = [GOLD[pair[f"candidate_{i}"]] for pair in PAIRS]
        assert list(table[f"gold_{i}"]) == pytest.approx(expected)


def test_a_reward_model_reads_the_instruction_in_front_of_the_prompt():
    prompt = format_prompt(POST, "Be brief.")
    assert prompt.startswith("Be brief. r/work")
    metrics, _ = evaluate_reward_model(scorer(SCORES, prompt), PAIRS, "Be brief.")
    assert metrics["accuracy_gold"] == pytest.approx(2 / 3)


def test_gold_is_left_out_where_nobody_knows_it():
    other = "Translate `cheese` into French. "
    pairs = [preference("fromage", "queso", 0, other)]
    scores = scorer({"fromage": 1.0, "queso": 0.0}, format_prompt(other))
    metrics, table = evaluate_reward_model(scores, pairs)
    assert set(metrics) == {"pairs", "accuracy_noisy", "accuracy_noisy_low", "accuracy_noisy_high"}
    assert metrics["accuracy_noisy"] == 1
    assert not [name for name in table if "gold" in name]


@pytest.mark.parametrize(
    ("pair", "known"), [(PAIRS[1], {"noisy", "gold"}), (PAIRS[2], {"noisy"})], ids=["close", "tie"]
)
def test_an_accuracy_without_any_pair_is_left_out(pair, known):
    metrics, _ = evaluate_reward_model(scorer(SCORES), [pair])
    assert {name for name in ("noisy", "gold", "clear") if f"accuracy_{name}" in metrics} == known


# Policies

REFERENCE = object()
REWARDS = {PERFECT: 2.0, SHORT: -1.0}
PROMPTS = [{"input_text": POST}] * 2


@pytest.fixture
def answered(monkeypatch):
    """Calls of `respond`, which answers with PERFECT and, cut off, with SHORT."""
    calls = []

    def respond(policy, tokenizer, prompts, *, reference=None, **settings):
        calls.append({"prompts": prompts, **settings})
        ratios = [0.5, 2.5] if reference is REFERENCE else []
        return Responses([f" {PERFECT}", f" {SHORT}"], [True, False], [20, 48], ratios)

    monkeypatch.setattr(generation, "respond", respond)
    return calls


def test_the_numbers_of_a_policy(answered):
    metrics, table = evaluate_policy(
        None, None, PROMPTS, reward_model=scorer(REWARDS), reference=REFERENCE, seed=3
    )
    assert metrics == pytest.approx(
        {
            "length": 34,
            "eos_rate": 0.5,
            "kl": 1.5,
            "reward": 0.5,
            "point": 0.5,
            "covered": 2.5,
            "wrong": 0,
            "words": (8 + 5) / 2,
            "gold": 2.95,
            "gold_se": 1.55,
            "prompts": 2,
        }
    )
    assert list(table["prompt"]) == [format_prompt(POST)] * 2
    assert list(table["response"]) == [PERFECT, SHORT]
    assert list(table["gold"]) == pytest.approx([4.5, 1.4])
    assert answered == [
        {"prompts": [format_prompt(POST)] * 2, "max_new_tokens": 48, "temperature": 1.0, "seed": 3}
    ]


def test_what_was_not_asked_for_is_left_out(answered):
    metrics, table = evaluate_policy(None, None, PROMPTS, instruction="Be brief.")
    assert not {"kl", "reward"} & {*metrics, *table}
    assert metrics["gold"] == pytest.approx(2.95)
    assert answered[0]["prompts"] == [format_prompt(POST, "Be brief.")] * 2


@pytest.mark.parametrize("temperature", [-0.1, math.nan])
def test_a_temperature_below_0_is_refused(answered, temperature):
    with pytest.raises(ValueError, match="is below 0: give 0 \\(greedy\\) or more"):
        evaluate_policy(None, None, PROMPTS, temperature=temperature)
    assert not answered


def test_the_kl_at_any_temperature_is_that_of_what_is_sampled():
    """Against the exact one, of answers of a single token, whose distribution is enumerated."""
    policy, tokenizer = load_policy(Scale().base_model), load_tokenizer(Scale().base_model)
    asked = POST.replace("[summary]: ", "[comment]:")  # much may come next
    ids, mask = generation.encode_prompts(tokenizer, [format_prompt(asked)])
    with torch.no_grad():
        logits = policy(input_ids=ids, attention_mask=mask).logits[0, -1].double()
    reference = logits.log_softmax(-1)
    prompts, settings = [{"input_text": asked}] * 1500, {"reference": policy, "max_new_tokens": 1}
    curve = temperature_curve(policy, tokenizer, prompts, (0, 0.5, 1), **settings)
    assert curve["temperature"].tolist() == [0, 0.5, 1]
    assert {"gold", "gold_se", "length", "eos_rate", "kl"} <= set(curve)
    greedy, half, one = curve["kl"]
    sharp = (logits / 0.5).log_softmax(-1)
    exact = float((sharp.exp() * (sharp - reference)).sum())
    assert greedy == pytest.approx(-float(reference.max()), abs=1e-4)
    assert exact > 0.05 and half == pytest.approx(exact, rel=0.2)
    assert one == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("prompts", [["Hello?", "Cheese?"], [POST, "Cheese?"]])
def test_prompts_that_are_not_of_the_little_world_have_no_gold(answered, prompts):
    records = [{"input_text": prompt} for prompt in prompts]
    metrics, table = evaluate_policy(None, None, records, reference=REFERENCE)
    assert set(metrics) == {"length", "eos_rate", "kl", "prompts"}
    assert set(table) == {"prompt", "response", "length", "eos_rate", "kl"}


def test_generic_evaluation_knows_no_world_and_takes_any_gold(answered):
    def characters(prompts, answers):
        return {"gold": [float(len(answer)) for answer in answers]}

    found, table = generic.evaluate_policy(None, None, PROMPTS)
    assert "gold" not in {*found, *table}
    found, _ = generic.evaluate_policy(None, None, PROMPTS, gold=characters)
    assert found["gold"] == pytest.approx((len(PERFECT) + len(SHORT)) / 2)
    pair = {"input_text": "a post", "candidate_0": "a b c", "candidate_1": "long word", "choice": 0}
    scores = lambda texts: [float(len(text.split())) for text in texts]  # noqa: E731
    found, table = generic.evaluate_reward_model(scores, [pair], gold=characters)
    assert (found["accuracy_noisy"], found["accuracy_gold"]) == (1, 0)
    assert table[["gold_0", "gold_1"]].to_numpy().tolist() == [[5, 9]]
    found, _ = generic.evaluate_reward_model(scores, [pair])
    assert "accuracy_gold" not in found


@pytest.mark.parametrize("room", ["evaluation", "annotation"])
def test_generic_evaluation_imports_nothing_of_the_little_world(room):
    importing = {
        path.name
        for path in (Path(rlhf_helpers.__file__).parent / room).glob("*.py")
        if re.search(r"^ *(from|import) .*little_world", path.read_text(), re.MULTILINE)
    }
    assert importing <= {"little_world.py", "__init__.py"}  # the one that fills its gold in


def test_a_real_policy():
    policy = load_policy(Scale().base_model)
    tokenizer = load_tokenizer(Scale().base_model)
    texts = (POST, POST.replace("yelled", "talked"), "r/work: ")
    prompts = [{"input_text": text} for text in texts]
    settings = {"reference": policy, "max_new_tokens": 6}
    sampled, table = evaluate_policy(policy, tokenizer, prompts[:2], **settings)
    again, same = evaluate_policy(policy, tokenizer, prompts[:2], **settings)
    pd.testing.assert_frame_equal(table, same)
    assert sampled == again
    assert sampled["kl"] == pytest.approx(0, abs=1e-4)
    assert 1 <= sampled["length"] <= 6 and "gold" in sampled
    settings["max_new_tokens"] = 24
    _, table = evaluate_policy(policy, tokenizer, prompts[:2], **settings)
    _, other = evaluate_policy(policy, tokenizer, prompts[:2], **settings, seed=1)
    assert list(other["response"]) != list(table["response"])
    greedy, _ = evaluate_policy(policy, tokenizer, prompts, temperature=0.0, **settings)
    assert set(greedy) == {"length", "eos_rate", "kl", "prompts"}


# Two models


def test_a_win_rate_counts_a_tie_as_half_a_win():
    won = win_rate([3, 2, 1, 4], [1, 2, 2, 3])
    assert (won.wins, won.ties, won.losses) == (2, 1, 1)
    assert won.rate == 2.5 / 4
    assert (won.low, won.high) == wilson_interval(2.5, 4)
    assert win_rate([1, 2, 2, 3], [3, 2, 1, 4]).rate == 1 - won.rate


def test_the_bootstrap_interval_is_that_of_resampled_prompts():
    won = win_rate([1] * 60 + [0] * 100 + [-1] * 40, [0] * 200)
    deviation = math.sqrt((60 * 0.45**2 + 100 * 0.05**2 + 40 * 0.55**2) / 200 / 200)
    bounds = (won.bootstrap_low, won.bootstrap_high)
    assert bounds == pytest.approx((0.55 - 1.96 * deviation, 0.55 + 1.96 * deviation), abs=0.005)
    assert won.low < won.bootstrap_low < won.bootstrap_high < won.high  # ties vary less
    clean = win_rate([1, 1, 1], [0, 0, 0])
    assert (clean.bootstrap_low, clean.bootstrap_high) == (1, 1) and clean.low < 0.5


def test_equal_models_come_out_at_a_half():
    assert win_rate([1.0, 5.0], [1.0, 5.0]).rate == 0.5


@pytest.mark.parametrize(
    ("tuned", "untuned"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([], []), ([math.nan], [1.0])]
)
def test_a_win_rate_needs_a_number_of_both_for_every_prompt(tuned, untuned):
    with pytest.raises(ValueError, match="give one number for each prompt"):
        win_rate(tuned, untuned)


def predictions(path, answers: dict[str, str]):
    records = [{"inputs": {"inputs_pretokenized": p}, "prediction": a} for p, a in answers.items()]
    write_jsonl(path, records)
    return path


def test_side_by_side_matches_by_prompt_and_not_by_position(tmp_path):
    tuned = predictions(tmp_path / "tuned.jsonl", {"p ": "new p", "q": "", "r": "new r"})
    untuned = predictions(tmp_path / "untuned.jsonl", {"r": "old r", "p": "old p", "q": "old q"})
    table = side_by_side(tuned, untuned)
    assert list(table.columns) == ["prompt", "untuned", "tuned"]
    rows = [["p", "old p", "new p"], ["q", "old q", ""], ["r", "old r", "new r"]]
    assert table.values.tolist() == rows


@pytest.mark.parametrize("lacking", ["tuned", "untuned"])
def test_side_by_side_leaves_out_what_one_file_lacks_and_names_it(tmp_path, lacking):
    answers = dict.fromkeys("pqrst", "answer")
    paths = {
        name: predictions(tmp_path / f"{name}.jsonl", {"p": "a"} if name == lacking else answers)
        for name in ("tuned", "untuned")
    }
    with pytest.warns(UserWarning) as caught:
        table = side_by_side(paths["tuned"], paths["untuned"])
    assert list(table["prompt"]) == ["p"]
    assert table[lacking].item() == "a"
    other = "untuned" if lacking == "tuned" else "tuned"
    assert [str(warning.message) for warning in caught] == [
        f"{paths[other]}: 4 of 5 prompts are not in the other file and are left out: "
        "'q', 'r', 's', …"
    ]


def test_side_by_side_of_files_with_different_prompts_is_an_error(tmp_path):
    tuned = predictions(tmp_path / "tuned.jsonl", {"p": "a"})
    untuned = predictions(tmp_path / "untuned.jsonl", {"q": "a"})
    with pytest.raises(DataError, match=r"none of its 1 prompts is in .*has 'q'") as caught:
        side_by_side(tuned, untuned)
    assert str(caught.value).startswith(str(tuned))


def test_side_by_side_refuses_two_answers_to_one_prompt(tmp_path):
    once = predictions(tmp_path / "once.jsonl", {"p": "a"})
    twice = predictions(tmp_path / "twice.jsonl", {"p": "a", " p": "b"})
    with pytest.raises(DataError, match="'p' is there twice"):
        side_by_side(once, twice)


# What only the little world can tell


def test_the_ceiling_of_labels_is_what_the_best_judge_reaches():
    records = read_preferences(Scale().data("preferences", "test"))[:300]
    rng, right, best = random.Random(0), [], label_ceiling(records)
    for record in records:
        facts, post = read_post(record["input_text"]), find_post(record["input_text"])
        measured = [measure(facts, record[f"candidate_{i}"], post) for i in (0, 1)]
        chosen = [
            choose((annotator.utility(measured[0]), annotator.utility(measured[1])), rng)
            for annotator in ANNOTATORS
            for _ in range(100)
        ]
        right.append(max(np.mean(chosen), 1 - np.mean(chosen)))
    assert best == pytest.approx(np.mean(right), abs=0.01)
    assert 0.8 < best < 1


def test_the_best_recipe_for_each_post_tells_its_point_and_no_fixed_one_is_best():
    posts = [as_input_text(post) for _, post in itertools.islice(draw_posts(random.Random(0)), 60)]
    worth = recipe_gold(posts)
    assert len(worth) == 32
    best = {slots: gold.mean() for slots, gold in worth.items()}
    for place, text in enumerate(posts):
        assert read_post(text).point in max(worth, key=lambda slots: worth[slots][place])
    assert max(best.values()) < np.max(list(worth.values()), axis=0).mean() - 1
