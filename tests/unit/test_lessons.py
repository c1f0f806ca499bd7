"""The notebooks as they are read: their order and size, and that every exercise gives an answer."""

import ast
import re
from itertools import combinations
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbformat import NotebookNode
from scipy.special import expit

from rlhf_helpers import checks, schemas
from rlhf_helpers.checks.feedback import Feedback
from rlhf_helpers.cloud import ENDPOINT, EXAMPLE_PRICES
from rlhf_helpers.commands.notebooks import course_notebooks
from rlhf_helpers.pipelines import vertex_rlhf
from rlhf_helpers.runs import project_root

LESSONS = {path.stem: nbformat.read(path, as_version=4) for path in course_notebooks()}
lessons = pytest.mark.parametrize("lesson", LESSONS.values(), ids=LESSONS.keys())


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def code_cells(lesson: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in lesson.cells if cell.cell_type == "code"]


# ---- how a notebook is built ---------------------------------------------------------------


@lessons
def test_a_notebook_says_first_what_it_teaches_needs_and_takes(lesson):
    opening, parameters = lesson.cells[0].source, lesson.cells[1]
    assert opening.startswith("# L")
    for heading in ("**You will learn**", "**You need**", "**It takes**"):
        assert heading in opening
    assert tagged(parameters, "parameters")
    assert 'scale = "tiny"' in parameters.source and "seed = 0" in parameters.source


@lessons
def test_no_cell_is_longer_than_15_lines(lesson):
    assert all(len(cell.source.splitlines()) <= 15 for cell in code_cells(lesson))


@lessons
def test_a_notebook_ends_with_exercises_results_and_the_way_on(lesson):
    headings = re.findall(r"(?m)^## (.*)", "\n".join(cell.source for cell in lesson.cells))
    assert headings[-2:] == ["Check yourself", "Results"]
    assert lesson.cells[-1].source.startswith("**Next:**")
    assert sum("What to look for" in cell.source for cell in lesson.cells) >= 3


@pytest.mark.parametrize("name", LESSONS)
def test_every_link_and_picture_leads_somewhere(name):
    folder = course_notebooks()[0].parent
    text = "\n".join(c.source for c in LESSONS[name].cells if c.cell_type == "markdown")
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith("http")]
    assert targets
    assert [t for t in targets if not (folder / t).exists()] == []


@lessons
def test_committed_outputs_are_there_and_name_no_machine_path(lesson):
    for cell in code_cells(lesson):
        assert (cell.execution_count is None) == tagged(cell, "exercise")
        shown = str([output for output in cell.outputs if "data" not in output])
        folders = (project_root(), Path.home(), gettempdir())
        assert not [folder for folder in folders if f"{folder}/" in shown]


@lessons
def test_committed_outputs_show_a_figure_wherever_one_is_drawn(lesson):
    draws = re.compile(r"\baxes\b|\bplots\.\w+\([^;]*\);$")
    drawn = [cell for cell in code_cells(lesson) if draws.search(cell.source)]
    assert drawn
    for cell in drawn:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source


# ---- exercises -----------------------------------------------------------------------------

# What the exercises of a notebook find there, made earlier in it.
FOUND = {
    "L1_how_rlhf_works": {
        "reference": torch.tensor([0.6, 0.3, 0.1]),
        "rewards": torch.tensor([0.0, 1.0, 0.6]),
    },
    "L3_tune_llm": {"vertex_rlhf": vertex_rlhf},
    "L5_google_cloud_setup": {"price": EXAMPLE_PRICES[ENDPOINT]},
    "L8_local_ppo": {
        "kl_coefs": (0.0,),
        "sweep": {0.0: [{"gold": g} for g in (1.5, 2.0, 2.5, 2.0, 0.0, -3.0, -6.0)]},
    },
    "L10_rest": {"combinations": combinations},
}
PAIR = {"input_text": "p", "candidate_0": "a", "candidate_1": "a b", "choice": 1}


def exercises(tag: str) -> list:
    """Every exercise cell, or every solution, with the check that it calls."""
    return [
        pytest.param(name, cell, id=re.findall(r"checks\.(\w+)", cell.source)[-1])
        for name, lesson in LESSONS.items()
        for cell in code_cells(lesson)
        if tagged(cell, tag)
    ]


def feedback_of(name: str, cell: NotebookNode, folder: Path) -> Feedback:
    """Run a cell; its last line is the call of the check."""
    broken_path = folder / "broken.jsonl"
    schemas.write_jsonl(broken_path, [PAIR, PAIR, PAIR | {"choice": "1"}])
    found = {"checks": checks, "torch": torch, "np": np, "schemas": schemas}
    names: dict[str, Any] = found | FOUND.get(name, {}) | {"broken_path": broken_path}
    *body, last = ast.parse(cell.source).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@lessons
def test_two_to_four_exercises_each_followed_by_its_folded_solution(lesson):
    cells = code_cells(lesson)
    stubs = [i for i, cell in enumerate(cells) if tagged(cell, "exercise")]
    assert 2 <= len(stubs) <= 4
    assert [i for i, cell in enumerate(cells) if tagged(cell, "solution")] == [i + 1 for i in stubs]
    assert all(cells[i + 1].metadata["jupyter"]["source_hidden"] for i in stubs)


@pytest.mark.parametrize(("name", "cell"), exercises("solution"))
def test_every_solution_is_right_here_and_in_the_committed_run(name, cell, tmp_path):
    feedback = feedback_of(name, cell, tmp_path)
    assert feedback.passed and repr(feedback).startswith("✓ ")
    assert cell.outputs[-1].data["text/plain"].startswith("✓ ")


@pytest.mark.parametrize(("name", "cell"), exercises("exercise"))
def test_every_empty_stub_fails_with_a_hint(name, cell, tmp_path):
    feedback = feedback_of(name, cell, tmp_path)
    assert not feedback.passed
    assert feedback.message and len(feedback.hint) > 15
    assert repr(feedback) == f"✗ {feedback.message}\n  Hint: {feedback.hint}"


def normal(weights):
    return weights / weights.sum()


def logits_loss(chosen, rejected):
    return torch.nn.functional.softplus(rejected - chosen)


def backwards(ratio, advantages, cliprange):
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.minimum(ratio * advantages, clipped * advantages)


def forward_gae(rewards, values, gamma, lam):
    nexts = torch.cat([values[1:], torch.zeros(1)])
    return rewards + gamma * nexts - values


def no_value_behind(rewards, values, gamma, lam):
    advantages, running = torch.zeros_like(values), 0.0
    for t in reversed(range(len(values))):
        running = rewards[t] + gamma * lam * running
        advantages[t] = running
    return advantages


CAT = {"input_text": "p [summary]: ", "candidate_0": "My cat stares.", "candidate_1": "It rained."}
GOOGLE = {
    "preference_dataset": "gs://b/pairs.jsonl",
    "prompt_dataset": "gs://b/prompts.jsonl",
    "large_model_reference": "llama-2-7b",
    "reward_model_train_steps": 940,
    "reinforcement_learning_train_steps": 320,
}
PPO = ["reinforcement-learning", "bulk-inference-tuned", "evaluation"]
GOLD = [1.5, 2.0, 2.5, 2.0, 0.0, -3.0, -6.0]
# check, a wrong answer, other arguments, a word that the hint must hold
WRONG = [
    ("optimal_policy", lambda p, r, beta: normal(np.exp(r / beta)), [], "reference"),
    ("optimal_policy", lambda p, r, beta: p * np.exp(r / beta), [], "sum"),
    ("beta_for_share", 2.0, [[0.6, 0.3, 0.1], [0.0, 1.0, 0.6]], "Lower beta"),
    ("beta_for_share", 0.05, [[0.6, 0.3, 0.1], [0.0, 1.0, 0.6]], "Raise beta"),
    ("preference_record", CAT | {"choice": 1}, [], "number of the better"),
    ("preference_record", CAT | {"choice": "0"}, [], "fields"),
    ("longer_wins", lambda records: np.mean([r["choice"] for r in records]), [], "candidate 1"),
    (
        "longer_wins",
        lambda records: np.mean(
            [
                len(r[f"candidate_{r['choice']}"]) > len(r[f"candidate_{1 - r['choice']}"])
                for r in records
            ]
        ),
        [],
        "equal length",
    ),
    ("ranking_scores", lambda ranking: [ranking.index(i) for i in range(3)], [], "highest"),
    ("ranking_scores", lambda ranking: list(range(len(ranking)))[::-1], [], "order of the cand"),
    ("bad_line", 2, [], "read_preferences"),
    ("bad_line", 4, [], "counted from 1"),
    ("two_ceilings", 1.0, [0.854], "pair of equals"),
    ("two_ceilings", 0.75, [0.75], "into the formula"),
    ("win_rate", lambda a, b: (a > b).mean(), [], "half"),
    ("win_rate", lambda a, b: (a > b).sum() / (a != b).sum(), [], "left out"),
    (
        "precision_recall",
        lambda s, t: ((s & t).sum() / t.sum(), (s & t).sum() / s.sum()),
        [],
        "wrong way round",
    ),
    (
        "precision_recall",
        lambda s, t: ((s == t).sum() / s.sum(), (s == t).sum() / t.sum()),
        [],
        "hits",
    ),
    ("prompts_needed", 100, [], "0.03"),
    ("prompts_needed", 10_000, [], "Fewer"),
    ("labels", lambda p, r, eos: (p + r, [-100] * len(p) + r), [], "never to stop"),
    ("labels", lambda p, r, eos: (p + r + [eos], p + r + [eos]), [], "-100"),
    ("lora_parameters", lambda inputs, outputs, rank: inputs * outputs, [], "frozen"),
    ("lora_parameters", lambda inputs, outputs, rank: inputs * rank * outputs, [], "add"),
    ("weights_in_gigabytes", 5.2, [], "half a byte"),
    ("weights_in_gigabytes", 0.1625, [], "half a byte"),
    ("bradley_terry_loss", lambda c, r: logits_loss(r, c).mean(), [], "chosen - rejected"),
    ("bradley_terry_loss", lambda c, r: logits_loss(c, r).sum(), [], "Average"),
    ("bradley_terry_loss", lambda c, r: -torch.sigmoid(c - r).log().mean(), [], "stable"),
    (
        "kwise_loss",
        lambda s, ranking: logits_loss(s[ranking][:-1], s[ranking][1:]).mean(),
        [],
        "neighbours",
    ),
    (
        "kwise_loss",
        lambda s, ranking: logits_loss(*torch.combinations(s).T).mean(),
        [],
        "best first",
    ),
    ("score_gap", 0.9, [], "log"),
    ("score_gap", 9, [], "log"),
    ("last_token_score", lambda s, m: s[:, -1], [], "padding"),
    ("last_token_score", lambda s, m: s[torch.arange(len(s)), m.sum(1) % 4], [], "n - 1"),
    ("masked_mean", lambda v, m: v.mean(), [], "padding"),
    ("masked_mean", lambda v, m: ((v * m).sum(1) / m.sum(1)).mean(), [], "Every token"),
    ("gae", forward_gae, [], "surprises"),
    ("gae", no_value_behind, [], "expected"),
    ("clipped_loss", backwards, [], "minus"),
    ("clipped_loss", lambda r, a, c: -r.clamp(1 - c, 1 + c) * a, [], "wrong way"),
    ("hacking_curve", "rises and stays", [GOLD], "section 7"),
    ("hacking_curve", "falls from the start", [GOLD], "section 7"),
    ("improve_loss", lambda nll, rewards, tau: (nll * (rewards > tau)).mean(), [], "how many"),
    ("improve_loss", lambda nll, rewards, tau: nll[rewards < tau].mean(), [], "above"),
    ("kept_share_ratio", 2, [], "Half"),
    ("kept_share_ratio", 0.34, [], "Half"),
    ("expected_best", lambda scores, n: max(scores), [], "all"),
    ("expected_best", lambda scores, n: np.mean(sorted(scores)[-n:]), [], "luckiest"),
    ("implicit_reward", lambda pi, ref, m, beta: beta * (pi - ref).sum(1), [], "padding"),
    ("implicit_reward", lambda pi, ref, m, beta: ((pi - ref) * m).sum(1) / beta, [], "Times beta"),
    ("dpo_loss", lambda c, r, a, b, beta: logits_loss(beta * c, beta * r).mean(), [], "reference"),
    ("dpo_loss", lambda c, r, a, b, beta: logits_loss(c - a, r - b).mean(), [], "beta"),
    ("log_ratio_gap", 2.2, [], "without beta"),
    ("log_ratio_gap", 44, [], "divided"),
    (
        "label_probability",
        lambda given, turned: (expit(given[1] - given[0]) + expit(turned[1] - turned[0])) / 2,
        [],
        "swapped",
    ),
    ("label_probability", lambda given, turned: expit(given[1] - given[0]), [], "use both"),
    ("expected_agreement", lambda p, q: p * q, [], "both err"),
    ("expected_agreement", lambda p, q: (p + q) / 2, [], "both are wrong"),
    ("questions_asked", 15_000, [], "twice"),
    ("questions_asked", 60_000, [], "not twelve"),
    ("training_steps", lambda size, epochs: size // 64 * epochs, [], "round up"),
    ("training_steps", lambda size, epochs: -(-size * epochs // 64), [], "Every epoch"),
    ("adapted_kl_coeff", lambda c, kl, target: c * (1 + (kl / target - 1) / 10), [], "wild"),
    (
        "adapted_kl_coeff",
        lambda c, kl, target: c * (1 + max(-0.2, min(0.2, 1 - kl / target)) / 10),
        [],
        "dearer",
    ),
    ("pipeline_parameters", GOOGLE, [], "deploy_model=False"),
    ("pipeline_parameters", GOOGLE | {"reward_model_train_steps": 938}, [], "epochs"),
    ("runs_again", {"reinforcement-learning"}, [], "follow the arrows"),
    ("runs_again", {*PPO, "reward-model-training"}, [], "the cache"),
    ("least_roles", {"roles/editor"}, [], "the least"),
    ("least_roles", ["roles/aiplatform.user"], [], "reading and writing"),
    ("valid_together", lambda paths: len({p.rsplit("/", 1)[0] for p in paths}) == 1, [], "folders"),
    ("valid_together", lambda paths: all(p.startswith("gs://mine") for p in paths), [], "whole"),
    ("weekend_cost", 48 * EXAMPLE_PRICES[ENDPOINT], [], "9 hours of Monday"),
    ("weekend_cost", 72 * EXAMPLE_PRICES[ENDPOINT], [], "Monday at 9:00"),
]


@pytest.mark.parametrize(("check", "answer", "others", "word"), WRONG)
def test_typical_wrong_answers_get_a_hint_about_the_mistake(check, answer, others, word):
    feedback = getattr(checks, check)(answer, *others)
    assert not feedback.passed
    assert word in feedback.hint


def test_every_check_serves_an_exercise_and_is_tried_with_two_wrong_answers():
    used = {parameter.id for parameter in exercises("exercise")}
    tried = [check for check, *_ in WRONG]
    assert used == set(checks.__all__) - {"Feedback"}
    assert all(tried.count(check) >= 2 for check in used)


def test_an_answer_that_raises_is_told_what_it_raised():
    feedback = checks.masked_mean(lambda values, mask: values.no_such_thing)
    assert not feedback.passed
    assert "raised" in feedback.message and feedback.hint


@pytest.mark.parametrize("answer", [None, ..., "about 2", True])
def test_what_is_not_a_number_is_asked_for_one(answer):
    feedback = checks.score_gap(answer)
    assert not feedback.passed and "number" in feedback.hint


@pytest.mark.parametrize(
    ("gold", "right"),
    [
        ([1.0, 1.5, 2.0, 2.2, 2.2, 2.2, 2.2], "rises and stays"),
        (GOLD, "rises, then falls"),
        ([1.0, 0.5, 0.0, -1.0, -2.0, -3.0, -4.0], "falls from the start"),
    ],
)
def test_the_predicted_curve_is_compared_with_the_measured_one(gold, right):
    assert checks.hacking_curve(right, gold).passed
    others = {"rises and stays", "rises, then falls", "falls from the start"} - {right}
    assert not any(checks.hacking_curve(other, gold).passed for other in others)
