"""The second task: how posts begin, who completes them, what it is worth, and its data."""

import itertools
import json
import random
import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from rlhf_helpers import schemas
from rlhf_helpers.commands.main import main
from rlhf_helpers.little_world import autocomplete, build, completions, phrases
from rlhf_helpers.little_world.annotators import (
    ANNOTATORS,
    COMPLETION_BUDGET,
    UNKIND,
    gold,
    gold_columns,
    gold_scores,
    judge,
    measure,
)
from rlhf_helpers.little_world.grammar import (
    GIVEN_SLOTS,
    SLOTS,
    SPLITS,
    Facts,
    as_input_text,
    draw_beginnings,
    find_facts,
    find_post,
    read_post,
    split_of,
)
from rlhf_helpers.runs import data_dir, runs_dir
from rlhf_helpers.scales import Scale

FOLDER = data_dir() / "autocomplete"
READERS = {
    "demonstrations": (schemas.read_demonstrations, autocomplete.DEMONSTRATIONS),
    "prompts": (schemas.read_prompts, autocomplete.PROMPTS),
    "preferences": (schemas.read_preferences, autocomplete.PREFERENCES),
    "rankings": (schemas.read_rankings, autocomplete.RANKINGS),
}
FILES = [(name, split) for name, (_, sizes) in READERS.items() for split in sizes]
FACTS = Facts("work", "boss", "mocks my accent", "two years", "", "")
POST = (
    "r/work: I (30F) have a problem with my boss. I know they mean well. My chief makes jokes "
    "about my accent in meetings. This has gone on for two years."
)
GOOD = (
    "My boss mocks my accent, and after two years it still stings. So I offered a compromise, but "
    "nothing changed. Should we try therapy?"
)


def shipped(name: str, split: str) -> list[dict]:
    return READERS[name][0](FOLDER / f"{name}_{split}.jsonl")


def beginnings(count: int, split: str | None = None, seed: int = 0) -> list[tuple[Facts, str]]:
    return list(itertools.islice(draw_beginnings(random.Random(seed), split), count))


def written(kind: str, count: int = 300) -> list[tuple[Facts, str, str]]:
    rng = random.Random(kind)
    return [(f, post, completions.KINDS[kind](f, post, rng)) for f, post in beginnings(count)]


# Beginnings


def test_a_beginning_tells_who_what_and_for_how_long_and_nothing_else():
    for facts, post in beginnings(500):
        assert read_post(as_input_text(post)) == facts
        assert not facts.tried and not facts.question
        assert all(getattr(facts, slot) for slot in GIVEN_SLOTS)
        assert 15 <= len(post.split()) <= 55 and post.endswith(".")


def test_the_mark_at_the_end_tells_the_task():
    assert as_input_text(POST).endswith(". [continued]: ")
    assert as_input_text(POST + " Should I leave?").endswith("? [summary]: ")
    assert find_post(as_input_text(POST) + GOOD) == POST


def test_splits_share_no_combination_of_given_facts():
    found = {split: {facts for facts, _ in beginnings(1000, split)} for split in SPLITS}
    assert all(split_of(facts) == split for split in SPLITS for facts in found[split])
    assert not found["train"] & (found["validation"] | found["test"])


@pytest.mark.parametrize("text", [POST.replace("boss", "wife"), POST + " I yelled at them once."])
def test_half_a_post_that_is_no_beginning_is_refused(text):
    with pytest.raises(ValueError, match="its facts are unknown"):
        read_post(as_input_text(text))


@pytest.mark.parametrize("voice", phrases.TONES)
def test_the_voice_of_a_beginning_is_heard(voice):
    tone = phrases.TONES[voice] or phrases.FILLERS
    assert {completions.voice_of(POST.replace("I know they mean well.", s)) for s in tone} == {
        voice
    }


# What a completion is worth


def measured(text: str) -> dict[str, float]:
    found = measure(FACTS, text, POST)
    names = ("covered", "wrong", "over_budget", "rambling", "unfinished", "unkind")
    return {name: found[name] for name in names if found[name]}


MEASURED = {
    GOOD: {"covered": 5},
    GOOD.replace("boss", "manager"): {"covered": 4, "wrong": 1},
    GOOD.replace("two years", "ten days"): {"covered": 4, "wrong": 1},
    GOOD.removesuffix("?"): {"covered": 5, "unfinished": 1},
    "My boss mocks my accent like a selfish clown.": {"covered": 2, "unkind": 2},
    "They can rot for all I care. Would revenge be wrong?": {"covered": 1, "unkind": 2},
    "I barely sleep these days. My cat agrees with me.": {},
    "My cat agrees with me. My cat agrees with me.": {"rambling": 3 * 2},
    "My boss mocks my accent. [comment]: Your boss": {
        # ". comment", "comment your", "your boss" are no words of a post
        "covered": 2,
        "rambling": 3,
        "unfinished": 1,
    },
}


@pytest.mark.parametrize("text", MEASURED)
def test_measuring_a_completion(text):
    assert measured(text) == MEASURED[text]


def test_a_perfect_completion_is_worth_4_5_to_each_annotator():
    for annotator in ANNOTATORS:
        assert annotator.utility(measure(FACTS, GOOD, POST)) == pytest.approx(4.5)
    assert gold(as_input_text(POST), GOOD) == pytest.approx(4.5)
    assert gold_scores([f"{as_input_text(POST)}{GOOD} [summary]: My wife."]) < [4.5]


def test_every_fault_costs_every_annotator_and_each_another_amount():
    best = measure(FACTS, GOOD, POST)
    for fault in ("wrong", "over_budget", "rambling", "unfinished", "unkind"):
        assert all(a.utility(best | {fault: 1.0}) < a.utility(best) for a in ANNOTATORS)
    assert len({annotator.unkind for annotator in ANNOTATORS}) == 3


def test_every_word_over_the_budget_counts():
    words = " ".join(["I barely sleep these days."] * 20).split()
    found = measure(FACTS, " ".join(words[: COMPLETION_BUDGET + 3]), POST)
    assert found["over_budget"] == 3


def test_kind_voices_have_no_unkind_word_and_angry_ones_do():
    for voice in ("plain", "gentle"):
        sentences = [*phrases.TONES[voice], *phrases.RECALLS[voice], *phrases.FILLERS]
        assert not any(UNKIND.search(sentence) for sentence in sentences)
    for sentence in [*phrases.TONES["angry"], *phrases.RECALLS["angry"]]:
        assert UNKIND.search(sentence), sentence


def test_the_words_around_the_facts_give_none_away():
    gap = dict.fromkeys(SLOTS, "...")
    for recall in itertools.chain(*phrases.RECALLS.values()):
        assert not any(find_facts(recall.format(**gap)).values()), recall


def test_an_evaluation_counts_unkind_words_of_completions_alone():
    columns = gold_columns([as_input_text(POST)], ["What an absolute clown."])
    expected = {"covered": 0, "wrong": 0, "unkind": 1, "words": 4, "gold": pytest.approx(-0.8)}
    assert columns == {name: [value] for name, value in expected.items()}
    summarised = POST + " So I yelled at them once, but nothing changed. "
    summarised += f"{phrases.CUES['question'][0]} Should I leave?"
    assert "unkind" not in gold_columns([as_input_text(summarised)], [GOOD])


# The writers


@pytest.mark.parametrize("kind", completions.KINDS)
def test_every_kind_speaks_the_language_of_posts(kind):
    for facts, post, text in written(kind):
        found = measure(facts, text, post)
        assert text and not found["rambling"], text
        assert bool(found["unfinished"]) == (kind == "broken_off"), text


def test_each_kind_has_its_fault():
    def mean(kind, name):
        return sum(measure(f, text, post)[name] for f, post, text in written(kind)) / 300

    assert mean("faithful", "covered") > 3.5 and mean("faithful", "wrong") == 0
    assert mean("heated", "unkind") > 1.5
    assert mean("drifting", "covered") < 1.1 and mean("drifting", "unkind") < 0.3
    assert mean("contradicting", "wrong") > 0.9 and mean("off_topic", "wrong") > 1


def test_a_faithful_completion_keeps_its_writer_s_voice():
    for _, post, text in written("faithful"):
        told = [v for v, all_ in phrases.RECALLS.items() if any(spoken(r, text) for r in all_)]
        assert told == [completions.voice_of(post)], text


def spoken(recall: str, text: str) -> bool:
    return bool(re.search(re.sub(r"\{\w+\}", ".+", recall.replace(".", r"\.")), text))


def test_many_demonstrations_are_unkind_or_unfinished():
    records = shipped("demonstrations", "train")
    unkind = sum(bool(UNKIND.search(r["output_text"])) for r in records) / len(records)
    unfinished = sum(r["output_text"][-1] not in ".?" for r in records) / len(records)
    assert 0.4 < unkind < 0.7 and 0.1 < unfinished < 0.2


# The data


def test_every_file_is_there_and_all_are_small():
    expected = {f"{name}_{split}.jsonl" for name, split in FILES}
    expected |= {"preferences_by_annotator.jsonl", "judgements.jsonl"}
    assert {path.name for path in FOLDER.iterdir()} == expected
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6e6


@pytest.mark.parametrize(("name", "split"), FILES)
def test_a_file_has_its_size_and_posts_of_its_split(name, split):
    records = shipped(name, split)
    assert len(records) == READERS[name][1][split]
    for record in records:
        assert re.fullmatch(r"(?s)r/\w+: .*\. \[continued\]: ", record["input_text"])
        assert split_of(read_post(record["input_text"])) == split


@pytest.mark.parametrize("name", autocomplete.GRAMMAR_FILES)
def test_the_grammar_s_files_come_out_bit_for_bit_the_same(tmp_path, name, monkeypatch):
    records, sizes = autocomplete.GRAMMAR_FILES[name]
    files = {name: (records, dict.fromkeys(sizes, 100))}
    monkeypatch.setattr(autocomplete, "GRAMMAR_FILES", files)
    assert main(["data", "--task", "autocomplete", "--output-dir", str(tmp_path)]) == 0
    for split in sizes:
        file = f"{name}_{split}.jsonl"
        lines = (FOLDER / file).read_bytes().splitlines()[:100]
        assert (tmp_path / file).read_bytes().splitlines() == lines
    assert (tmp_path / "judgements.jsonl").read_bytes() == (
        FOLDER / "judgements.jsonl"
    ).read_bytes()


def test_labels_agree_with_the_gold_order_more_often_than_not_by_far():
    gaps = []
    for record in shipped("preferences", "test"):
        worth = [gold(record["input_text"], record[f"candidate_{i}"]) for i in (0, 1)]
        gaps.append(worth[record["choice"]] - worth[1 - record["choice"]])
    assert 0.82 < sum(gap > 1e-9 for gap in gaps) / sum(abs(gap) > 1e-9 for gap in gaps) < 0.95


def test_rankings_are_best_first_and_annotators_take_turns():
    records = shipped("rankings", "train")
    place = [0.0] * 4
    for record in records:
        for i, candidate in enumerate(record["ranking"]):
            place[i] += gold(record["input_text"], record["candidates"][candidate])
    assert all(one - two > 0.2 * len(records) for one, two in itertools.pairwise(place))
    named = Counter(record["annotator"] for record in records)
    assert all(0.28 < named[a.name] / len(records) < 0.39 for a in ANNOTATORS)


def test_sampled_files_come_from_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(autocomplete, "PREFERENCES", {"test": 3})
    monkeypatch.setattr(autocomplete, "RANKINGS", {"train": 2})
    monkeypatch.setattr(build, "MAX_NEW_TOKENS", 12)
    monkeypatch.setattr(build, "POSTS_AT_ONCE", 4)
    autocomplete.write_sampled_files(tmp_path, Scale().base_model)
    pairs = schemas.read_preferences(tmp_path / "preferences_test.jsonl")
    rankings = schemas.read_rankings(tmp_path / "rankings_train.jsonl")
    assert [len(set(record["candidates"])) for record in rankings] == [4, 4]
    for record in [*pairs, *rankings]:
        assert record["input_text"].endswith("[continued]: ")
    assert len(list(judge(pairs, ANNOTATORS[0], random.Random(0)))) == 3


def test_texts_survive_the_tokenizer_and_fit():
    tokenizer = AutoTokenizer.from_pretrained(Scale().base_model)
    records = shipped("demonstrations", "train")[:500]
    texts = [record["input_text"] + record["output_text"] for record in records]
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True) == texts
    answers = tokenizer([" " + record["output_text"] for record in records])["input_ids"]
    assert sum(len(ids) > 48 for ids in answers) < 0.05 * len(answers)


# The same stages


@pytest.mark.slow
def test_the_stages_learn_it_unchanged(monkeypatch, tmp_path, capsys):
    """And PPO mixes in the pretraining documents, which both tasks share."""
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))
    common = ["--scale", "smoke", "--task", "autocomplete"]
    for stage in (["sft"], ["reward"], ["ppo", "--ptx-coef", "0.1"]):
        assert main(["train", *stage, *common]) == 0
    assert main(["evaluate", *common, "--output-dir", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert {"gold", "unkind", "wrong", "kl", "reward"} <= set(report["sampled"])
    assert (runs_dir() / "smoke" / "autocomplete" / "seed0" / "ppo" / "metrics.json").exists()
    capsys.readouterr()
