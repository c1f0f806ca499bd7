"""The AI labeller: what it is taught by, how it is asked, and what becomes of its labels."""

import ast
import inspect
import itertools
import random
import re

import numpy as np
import pytest

from rlhf_helpers import rlaif, schemas
from rlhf_helpers.annotation.judges import judge_pairs
from rlhf_helpers.little_world import annotators, principles, writers
from rlhf_helpers.little_world.grammar import draw_posts, read_post, split_of
from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.scales import Scale

FACTS, POST = next(
    (facts, post) for facts, post in draw_posts(random.Random(1)) if facts.topic == "work"
)
PAIRS = Scale().data("preferences", "test")


def telling(facts) -> str:
    return writers.state_facts(facts, random.Random(0), ["relation", "problem", facts.point])


# The principles


def test_the_constitution_is_what_the_labeller_was_taught():
    assert rlaif.read_constitution() == list(principles.RULES)


def test_remarks_are_left_out_and_an_empty_constitution_is_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# a remark\n\n  Be kind.  \nBe brief.\n")
    assert rlaif.read_constitution(path) == ["Be kind.", "Be brief."]
    path.write_text("# a remark\n")
    with pytest.raises(schemas.DataError, match=r"mine\.txt: no principle"):
        rlaif.read_constitution(path)
    path.write_bytes(b"Be caf\xe9.")
    with pytest.raises(schemas.DataError, match=r"mine\.txt: not UTF-8"):
        rlaif.read_constitution(path)
    with pytest.raises(schemas.DataError, match=r"missing\.txt: no such file"):
        rlaif.read_constitution(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("principle", "worse"),
    [
        ("Name who it is about.", lambda t: t.replace(f"My {FACTS.relation}", "Someone")),
        ("Name the problem.", lambda t: t.replace(FACTS.problem, "is a problem")),
        (
            "Come to the point.",
            lambda t: re.sub(getattr(FACTS, FACTS.point), "that", t, flags=re.I),
        ),
        ("Do not make things up.", lambda t: t + " My drummer took the trophy."),
        ("Be brief.", lambda t: t + " and" * 30),
        ("Do not ramble.", lambda t: t + " so yeah it is a lot, so yeah it is a lot."),
        ("Finish the sentence.", lambda t: t[:-1]),
    ],
)
def test_a_summary_that_breaks_a_principle_loses_by_it(principle, worse):
    text = telling(FACTS)
    broken = worse(text)
    assert broken != text
    assert principles.verdicts(FACTS, text, broken)[principle] == -1
    assert principles.verdicts(FACTS, broken, text)[principle] == 1
    assert set(principles.verdicts(FACTS, text, text).values()) == {0}


def test_the_majority_counts_principles_and_not_how_much():
    assert principles.majority({"a": 1, "b": -1, "c": -1}) == -1
    assert principles.majority({"a": 1, "b": -1, "c": 0}) == 0
    assert principles.majority({"a": 1, "b": 0}) == 1


def test_the_lessons_owe_nothing_to_annotators_or_labels(monkeypatch):
    source = ast.parse(inspect.getsource(principles))
    imported = {
        name
        for node in ast.walk(source)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", ""), *(alias.name for alias in node.names)]
    }
    assert not [name for name in imported if name and ("annotators" in name or "schemas" in name)]

    def refused(*arguments, **keywords):
        raise AssertionError("the annotators were asked")

    for module, name in itertools.product((annotators, writers), dir(annotators)):
        if inspect.isfunction(getattr(annotators, name)) and hasattr(module, name):
            monkeypatch.setattr(module, name, refused)
    monkeypatch.setattr(annotators.Annotator, "utility", refused)
    assert len(list(itertools.islice(principles.lessons(random.Random(0)), 40))) == 40


def test_lessons_come_in_both_orders_from_the_training_split():
    found = list(itertools.islice(principles.lessons(random.Random(0)), 200))
    whole = principles.question_about(list(principles.RULES))
    for (text, answers), (turned, opposite) in zip(found[0::2], found[1::2], strict=True):
        assert split_of(read_post(text)) == "train"
        first, second = text.split(" [1]: ")[1].split(" [2]: ")
        assert turned.endswith(f" [1]: {second} [2]: {first}")
        other = {" 1": " 2", " 2": " 1"}
        assert {question: other[answer] for question, answer in answers} == dict(opposite)
        assert whole in dict(answers)
    said = [dict(answers)[whole] for _, answers in found]
    assert said.count(" 1") == said.count(" 2")


def test_only_the_answers_are_learnt():
    tokenizer = load_tokenizer(Scale().base_model)
    text, answers = next(principles.lessons(random.Random(0)))
    row = principles.encode_lesson(text, answers, tokenizer)
    learnt = [token for token in row["labels"] if token != -100]
    assert tokenizer.convert_ids_to_tokens(learnt) == ["Ġ" + a.strip() for _, a in answers]
    asked = tokenizer(text + answers[0][0] + answers[0][1])["input_ids"]
    assert row["input_ids"][: len(asked)] == asked, "at work it must read what it was taught"


# The labeller


def test_any_language_model_is_asked_with_the_principles_and_both_answers():
    asked = rlaif.constitution_question(["Be kind.", "Be brief."])("Why?", "Because.", "So.")
    assert "- Be kind.\n- Be brief.\n" in asked
    assert asked.index("Why?") < asked.index("Because.") < asked.index("So.")


def longer(prompts, firsts, seconds):
    gaps = np.array([len(b) - len(a) for a, b in zip(firsts, seconds, strict=True)])
    return (np.sign(gaps) + 1) / 2


def test_a_file_is_labelled_anew_and_ties_are_left_out(tmp_path):
    records = schemas.read_preferences(PAIRS)[:30]
    tie = records[0] | {"candidate_0": "My boss.", "candidate_1": "My wife."}
    schemas.write_jsonl(tmp_path / "pairs.jsonl", [tie, *records])
    target = tmp_path / "deeper" / "labelled.jsonl"
    table = rlaif.label_file(longer, tmp_path / "pairs.jsonl", target, count=25)
    labelled = schemas.read_preferences(target)
    assert len(table) == 25
    assert len(labelled) == (table["probability"] != 0.5).sum() < 25
    for record in labelled:
        chosen, other = record["choice"], 1 - record["choice"]
        assert len(record[f"candidate_{chosen}"]) > len(record[f"candidate_{other}"])
        assert record["annotator"] == rlaif.ANNOTATOR


def test_a_bad_file_is_refused_before_anything_is_judged(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"input_text": "p"}\n')

    def refuse(*arguments):
        raise AssertionError("judged")

    with pytest.raises(schemas.DataError, match="line 1"):
        rlaif.label_file(refuse, tmp_path / "pairs.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_small_labeller_prefers_what_the_principles_do_wherever_it_stands():
    records = schemas.read_preferences(PAIRS)[:60]
    said = [
        principles.majority(
            principles.verdicts(read_post(r["input_text"]), r["candidate_0"], r["candidate_1"])
        )
        for r in records
    ]
    clear = [(r, s) for r, s in zip(records, said, strict=True) if s]
    labeller = rlaif.ai_labeller(rlaif.read_constitution())
    table = judge_pairs(
        labeller,
        [r["input_text"] for r, _ in clear],
        [r["candidate_0"] for r, _ in clear],
        [r["candidate_1"] for r, _ in clear],
    )
    right = np.sign(table["probability"] - 0.5) == [s for _, s in clear]
    assert right.mean() >= 0.7


def test_another_model_is_loaded_by_its_folder_and_asked_in_plain_words():
    question = []

    def noted(listed):
        question.append(listed)
        return rlaif.constitution_question(listed)

    labeller = rlaif.ai_labeller(["Be brief."], Scale().base_model, question=noted)
    (said,) = labeller([f"{POST} [summary]: "], ["My boss."], [telling(FACTS)])
    assert 0 < said < 1
    assert question == [["Be brief."]]


def test_training_the_labeller_writes_an_adapter_and_no_machine_path(tmp_path):
    principles.train_labeller(tmp_path / "adapter", tmp_path / "work", pairs=8)
    written = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors", "metrics.json"}
    config = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "data/base_model"' in config
