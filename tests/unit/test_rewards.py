"""Reward functions: loaded from a file, called and checked alike, summed, logged by name."""

import json
import logging
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_helpers.commands.main import main
from rlhf_helpers.evaluation import evaluate_policy
from rlhf_helpers.ppo import PPOTrainer
from rlhf_helpers.rewards import Reward, Rewards, load_rewards
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import write_jsonl

MINE = """
def brevity(texts):
    return [-len(text) for text in texts]


def correct(prompt, response, record):
    return response == record["answer"]


def broken(texts):
    return [1 / 0 for text in texts]


limit = 7
"""
ROLLOUT = SimpleNamespace(
    texts=["a b", "a cc"],
    prompts=["a", "a"],
    responses=["b", "cc"],
    answers=[" b", " cc"],
    records=[{"input_text": "a", "answer": "cc"}] * 2,
)
ANSWERS = (ROLLOUT.texts, ROLLOUT.prompts, ROLLOUT.responses, ROLLOUT.records)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


# ---- loading a file ------------------------------------------------------------------------


def test_a_file_is_run_once_for_all_its_functions_and_that_is_said(mine, caplog):
    mine.write_text(MINE + "print('run')\n")
    with caplog.at_level(logging.WARNING):
        rewards = load_rewards([f"{mine}:brevity=0.5", f"{mine}:correct", f"{mine}:brevity=-2e-1"])
    assert [(reward.name, reward.weight) for reward in rewards] == [
        ("brevity", 0.5),
        ("correct", 1.0),
        ("brevity", -0.2),
    ]
    assert caplog.messages == [f"{mine}: this file is run, since it has reward functions"]
    assert rewards[0](*ANSWERS) == [-3.0, -4.0]
    assert rewards[1](*ANSWERS) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py", r"reward function 'mine.py': write file.py:function"),
        ("mine:brevity", "write file.py:function, or with a weight =0.5"),
        ("mine.py:brevity=much", "the weight 'much' is not a finite number"),
        ("mine.py:brevity=nan", "the weight 'nan' is not a finite number"),
        ("mine.py:long", "mine.py has no function 'long'; it has brevity, correct, broken"),
        ("mine.py:limit", "mine.py has no function 'limit'"),
        ("none.py:brevity", "there is no file none.py"),
        ("empty.py:brevity", "empty.py has no function 'brevity'; it has none"),
        ("wrong.py:brevity", r"wrong.py failed: NameError: .*wrong.py, line 2\)"),
        ("syntax.py:brevity", r"syntax.py failed: SyntaxError: .*line 1\)"),
        ("two.py:both", "reward 'both' takes 2 arguments: let it take one"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(mine, monkeypatch, name, message):
    monkeypatch.chdir(mine.parent)
    (mine.parent / "empty.py").write_text("")
    (mine.parent / "wrong.py").write_text("\nx = undefined\n")
    (mine.parent / "syntax.py").write_text("def (\n")
    (mine.parent / "two.py").write_text("def both(prompt, response): return 0\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_rewards([name])
    assert "\n" not in str(error.value)


# ---- calling them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores", [[1, 2.5], (True, False), np.array([0.5, 1]), [np.float32(1), 2]]
)
def test_what_a_function_of_texts_may_return(scores):
    found = Reward("mine", lambda texts: scores)(*ANSWERS)
    assert found == [float(score) for score in scores]
    assert all(type(score) is float for score in found)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda texts: torch.zeros(2), "returned a Tensor: let it return a list of 2 numbers"),
        (lambda texts: None, "returned a NoneType: let it return a list of 2 numbers"),
        (lambda texts: 1.0, "returned a float: let it return a list of 2 numbers"),
        (lambda texts: [1.0], "returned 1 scores for 2 texts"),
        (lambda texts: [], "returned 0 scores for 2 texts"),
        (lambda texts: [1.0, math.nan], "gave nan for 'a cc': let it give a finite number"),
        (lambda texts: [math.inf, 1.0], "gave inf for 'a b': let it give a finite number"),
        (lambda texts: [1.0, None], "gave the NoneType None for 'a cc'"),
        (lambda texts: ["1", 1.0], "gave the str '1' for 'a b'"),
        (lambda texts: [torch.tensor(1.0), 1.0], "gave the Tensor tensor(1.) for 'a b'"),
        (lambda texts: texts[2], r"failed on 2 texts: IndexError: .*test_rewards.py, line \d+"),
        (lambda p, r, record: record["b"], "failed on the answer 'b': KeyError: 'b'"),
        (lambda p, r, record: None, "gave the NoneType None for 'a b'"),
    ],
)
def test_what_goes_wrong_is_one_sentence_with_the_reward_s_name(function, message):
    with pytest.raises(ValueError) as error:
        Reward("mine", function)(*ANSWERS)
    assert str(error.value).startswith("reward 'mine' ") and "\n" not in str(error.value)
    assert message in str(error.value) or re.search(message, str(error.value))


def test_a_function_of_one_answer_sees_its_own_prompt_and_record():
    seen = []
    Reward("mine", lambda prompt, response, record: seen.append((prompt, response)) or 0)(
        ["pa", "qb"], ["p", "q"], ["a", "b"], [{}, {}]
    )
    assert seen == [("p", "a"), ("q", "b")]


# ---- their sum -----------------------------------------------------------------------------


def test_the_sum_has_the_weights_and_the_means_have_not(mine):
    functions = load_rewards([f"{mine}:brevity=-0.5", f"{mine}:correct=2"])
    scores, means = Rewards(lambda texts: [10.0, 20.0], functions, 0.1)(ROLLOUT)
    assert scores == pytest.approx([1 + 1.5 + 0, 2 + 2 + 2])
    assert means == {"reward/reward_model": 15, "reward/brevity": -3.5, "reward/correct": 0.5}


def test_a_reward_model_alone_is_left_exactly_as_it_is():
    given = torch.randn(2).tolist()
    assert Rewards(lambda texts: given)(ROLLOUT)[0] == given


def test_names_must_differ_and_something_must_be_left(mine):
    twice = load_rewards([f"{mine}:brevity", f"{mine}:brevity"])
    with pytest.raises(ValueError, match="two rewards are called 'brevity'"):
        Rewards(None, twice)
    with pytest.raises(ValueError, match="two rewards are called 'reward_model'"):
        Rewards(len, [Reward("reward_model", lambda texts: [])])
    with pytest.raises(ValueError, match="no reward is left"):
        Rewards()


# ---- in the trainer ------------------------------------------------------------------------


def test_prompts_and_records_stay_with_their_responses(make_trainer):
    trainer = make_trainer()
    records = [{"answer": i} for i in range(2)]
    rollout = trainer.rollout(["The cat", "x"], records)
    assert rollout.prompts == ["The cat"] * 2 + ["x"] * 2
    assert [record["answer"] for record in rollout.records] == [0, 0, 1, 1]
    kept = rollout.select(torch.tensor([3, 0]))
    assert kept.prompts == ["x", "The cat"]
    assert [record["answer"] for record in kept.records] == [1, 0]
    assert trainer.rollout(["x"]).records == [{"input_text": "x"}] * 2


# ---- on the command line -------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, make_model, tokenizer, mine, monkeypatch):
    """The folder of a small policy, and prompts with answers; the arguments to train on them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))
    make_model("opt").save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    write_jsonl(tmp_path / "prompts.jsonl", [{"input_text": "What?", "answer": "it"}] * 3)
    names = ["--scale", "smoke", "--model", "policy", "--data", "prompts.jsonl"]
    return [*names, "--output-dir", "out", "--reward-model-weight", "0", "--steps", "2"]


def test_a_run_without_a_reward_model_logs_each_reward_by_name(own, tmp_path):
    rewards = ["--reward-function", "mine.py:brevity=0.5", "--reward-function", "mine.py:correct"]
    assert main(["train", "ppo", *own, *rewards]) == 0
    history = json.loads((tmp_path / "out" / "metrics.json").read_text())["history"]
    for stats in history:
        assert stats["reward/brevity"] <= -len("What?")
        total = 0.5 * stats["reward/brevity"] + stats["reward/correct"]
        assert stats["reward_mean"] == pytest.approx(total, abs=1e-5)
    events = EventAccumulator(str(tmp_path / "out" / "logs"))
    events.Reload()
    logged = [point.value for point in events.Scalars("ppo/reward/brevity")]
    assert logged == pytest.approx([stats["reward/brevity"] for stats in history])


@pytest.mark.parametrize(("stage", "lora"), [("rloo", 0), ("grpo", 4)])
def test_the_names_of_critic_free_runs_are_stages(own, tmp_path, stage, lora):
    options = ["--reward-function", "mine.py:brevity", "--lora-rank", str(lora)]
    assert main(["train", stage, *own, *options]) == 0
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["config"]["advantages"] == stage
    assert [("value_loss" in row, "equal_groups" in row) for row in report["history"]] == [
        (False, True)
    ] * 2
    assert main(["train", stage, *own, *options, "--resume"]) == 0
    with pytest.raises(SystemExit):  # there is no critic to set
        main(["train", stage, *own, *options, "--vf-coef", "1"])


def test_a_resumed_run_must_have_the_same_functions(own, mine, monkeypatch, capsys):
    reward = ["--reward-function", "mine.py:brevity"]
    assert main(["train", "ppo", *own, *reward]) == 0
    assert main(["train", "ppo", *own, *reward, "--resume"]) == 0
    capsys.readouterr()
    assert main(["train", "ppo", *own, *reward[:1], "mine.py:brevity=2", "--resume"]) == 2
    assert "reward_function was ['mine.py:brevity'], now" in capsys.readouterr().err
    mine.write_text(MINE.replace("-len", "len"))
    assert main(["train", "ppo", *own, *reward, "--resume"]) == 2
    assert "content of mine.py was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (["mine.py:broken"], "error: reward 'broken' failed on 8 texts: ZeroDivisionError"),
        (["mine.py:long"], "error: mine.py has no function 'long'"),
        (["mine.py:brevity", "mine.py:brevity"], "error: two rewards are called 'brevity'"),
        ([], "error: reward_model_weight 0 leaves no reward: set reward_function too"),
    ],
)
def test_a_run_with_a_bad_reward_stops_in_one_line(own, capsys, reward, message):
    options = [word for name in reward for word in ("--reward-function", name)]
    assert main(["train", "ppo", *own, *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_a_run_with_a_broken_file_stops_before_a_model_is_loaded(own, capsys, monkeypatch):
    monkeypatch.setattr(PPOTrainer, "__init__", None)
    assert main(["train", "ppo", *own, "--reward-function", "none.py:brevity"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: reward function 'none.py:")


def test_evaluate_reports_each_function_by_name(own, tmp_path):
    words = ["--policy", "./policy", "--reference", "./policy", "--prompts", "prompts.jsonl"]
    words += ["--scale", "smoke", "--max-new-tokens", "4", "--temperatures", "0"]
    rewards = ["--reward-function", "mine.py:brevity=3", "--reward-function", "mine.py:correct"]
    assert main(["evaluate", *words, *rewards, "--output-dir", "out"]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["greedy"]
    assert found["reward/correct"] == found["reference_reward/correct"] == 0
    assert found["reward/brevity"] == found["reference_reward/brevity"] <= -len("What?")


def test_evaluation_passes_the_record_of_each_prompt(make_model, tokenizer):
    prompts = [{"input_text": "What?", "answer": 3}, {"input_text": "x", "answer": 5}]
    reward = Reward("answer", lambda prompt, response, record: record["answer"])
    metrics, table = evaluate_policy(
        make_model("opt"), tokenizer, prompts, max_new_tokens=2, reward_functions=[reward]
    )
    assert table["reward/answer"].tolist() == [3, 5] and metrics["reward/answer"] == 4


def test_rlaif_takes_reward_functions_too():
    config = Scale("smoke").config("rlaif", reward_function=("mine.py:brevity",))
    assert config.reward_function == ("mine.py:brevity",)
