"""Other people's data sets, mapped to our records: small files written here."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.reward_model import append_eos, encode_pairs
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import (
    DataError,
    candidate_texts,
    rankings_to_preferences,
    read_preferences,
    write_jsonl,
)
from rlhf_helpers.sources import Loaded, convert, load_preferences, read_file
from rlhf_helpers.sources.conversations import ASSISTANT, shared_prompt


def dialogue(*turns: str) -> str:
    """`Human:` and `Assistant:` in turn, as hh-rlhf writes them."""
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


def answers(record: dict) -> tuple[str, str]:
    """The chosen and the rejected answer."""
    return record[f"candidate_{record['choice']}"], record[f"candidate_{1 - record['choice']}"]


def as_preferences(rows: list) -> Loaded:
    return convert(rows, "preferences")


def write(path: Path, *lines) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


# hh-rlhf


def test_what_two_dialogues_share_is_the_prompt():
    row = {
        "chosen": dialogue("Hi", "Hello", "A pie?", "Take six apples."),
        "rejected": dialogue("Hi", "Hello", "A pie?", "Take a hike."),
    }
    loaded = as_preferences([row])
    (record,) = loaded.records
    assert record["input_text"] == dialogue("Hi", "Hello", "A pie?") + ASSISTANT
    assert answers(record) == ("Take six apples.", "Take a hike.")
    assert not loaded.dropped and not loaded.notes
    assert candidate_texts(record)[record["choice"]] == row["chosen"]


def test_dialogues_that_part_early_keep_the_rest_of_both_as_answers():
    row = {
        "chosen": dialogue("Hi", "Hello", "A pie?", "Apples."),
        "rejected": dialogue("Hi", "Go away"),
    }
    (record,) = as_preferences([row]).records
    assert record["input_text"] == dialogue("Hi") + ASSISTANT
    assert answers(record) == ("Hello\n\nHuman: A pie?\n\nAssistant: Apples.", "Go away")


def test_dialogues_without_a_common_turn_of_the_assistant_are_kept_and_noted():
    row = {"chosen": dialogue("A pie?", "Apples."), "rejected": dialogue("A cake?", "Flour.")}
    loaded = as_preferences([row])
    (record,) = loaded.records
    assert record["input_text"] == "\n\nHuman:"
    assert answers(record) == ("A pie?\n\nAssistant: Apples.", "A cake?\n\nAssistant: Flour.")
    assert loaded.notes == {"no turn of the assistant in common": 1}
    assert candidate_texts(record)[record["choice"]] == row["chosen"]


def test_what_cannot_be_used_is_counted_by_reason():
    good = {"chosen": dialogue("Hi", "yes"), "rejected": dialogue("Hi", "no")}
    rows = [
        good,
        {"chosen": dialogue("Hi", "yes"), "rejected": dialogue("Hi", "")},
        {"chosen": dialogue("Hi", "yes"), "rejected": dialogue("Hi", "yes") + " "},
        {"chosen": "yes", "rejected": "no"},
        {"chosen": None, "rejected": "no"},
        {"question": "?", "response": "!"},
        ["a list"],
        {**good, "chosen": dialogue("A pie?", ""), "rejected": dialogue("A pie?", "no") + "!"},
    ]
    loaded = as_preferences(rows)
    assert (len(loaded.records), loaded.read) == (1, 8)
    assert loaded.dropped == {
        "an empty answer": 2,
        "equal answers": 1,
        "no common beginning": 1,
        "a missing text": 1,
        "fields of no known shape": 1,
        "not a JSON object": 1,
    }
    assert loaded.read == len(loaded.records) + loaded.dropped.total()
    assert str(loaded).startswith("1 records from 8 rows; dropped 2: an empty answer; dropped 1")


def test_other_fields_and_the_choice_s_place_survive():
    rows = [
        {"chosen": dialogue("Hi", "y" * n), "rejected": dialogue("Hi", "n"), "subset": "harmless"}
        for n in range(2, 22)
    ]
    records = as_preferences(rows).records
    assert {record["choice"] for record in records} == {0, 1}
    assert all(answers(record)[1] == "n" for record in records)
    assert all(record["subset"] == "harmless" and "chosen" not in record for record in records)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5), st.text(max_size=8), st.text())
def test_a_shared_prompt_begins_both_dialogues_and_ends_at_a_turn(turns, first, second):
    chosen, rejected = dialogue(*turns, first), dialogue(*turns, second)
    prompt = shared_prompt(chosen, rejected)
    assert chosen.startswith(prompt) and rejected.startswith(prompt)
    assert prompt.endswith((ASSISTANT, "\n\nHuman:"))


def test_unicode_and_very_long_dialogues_come_through_whole(tmp_path):
    turns = [f"ein längerer Satz, 漢字 \u2028 \U0001f600 {i}" for i in range(801)]
    rows = [
        {"chosen": dialogue(*turns, "schön"), "rejected": dialogue(*turns, "häßlich")},
        {"chosen": dialogue("é?", "\u0085yes"), "rejected": dialogue("é?", "e\u0301")},
    ]
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, rows)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    loaded = load_preferences(path)
    assert loaded == load_preferences(tmp_path / "pairs.jsonl.gz")
    long, short = loaded.records
    assert long["input_text"] == dialogue(*turns) + ASSISTANT
    assert answers(long) == ("schön", "häßlich")
    assert answers(short) == ("yes", "e\u0301")

    write_jsonl(tmp_path / "ours.jsonl", loaded.records)
    assert read_preferences(tmp_path / "ours.jsonl") == loaded.records
    tokenizer = append_eos(load_tokenizer(Scale().base_model), 32)
    rows = encode_pairs(loaded.records, tokenizer)
    assert len(rows) == 2
    chosen, rejected = tokenizer(["schön", "häßlich"])["input_ids"]
    assert rows[0]["chosen_ids"][-len(chosen) + 2 :] == chosen[2:]  # the end is what stays
    assert rows[0]["rejected_ids"][-len(rejected) + 2 :] == rejected[2:]
    assert rows[0]["length"] == 32


def test_pairs_that_differ_only_where_they_are_cut_are_dropped_in_training():
    same_end = " and so on" * 30
    rows = [
        {"chosen": dialogue("Hi", "One" + same_end), "rejected": dialogue("Hi", "Two" + same_end)},
        {"chosen": dialogue("Hi", "yes"), "rejected": dialogue("Hi", "no")},
    ]
    records = as_preferences(rows).records
    assert len(records) == 2
    assert len(encode_pairs(records, append_eos(load_tokenizer(Scale().base_model), 24))) == 1


# Vertex, rankings, and files


VERTEX = {"input_text": "a post", "candidate_0": "one", "candidate_1": "two", "choice": 1}


def test_vertex_records_stay_as_they_are_and_bad_ones_are_counted(tmp_path):
    path = write(
        tmp_path / "vertex.jsonl",
        "\ufeff" + json.dumps({**VERTEX, "extra": [1]}),
        {**VERTEX, "choice": 2},
        {**VERTEX, "choice": True},
        {**VERTEX, "candidate_1": " "},
        {**VERTEX, "candidate_1": "one "},
        {**VERTEX, "candidate_1": None},
        {**VERTEX, "input_text": ""},
        {"candidate_0": "a", "candidate_1": "b", "choice": 0},
        "",
        "not JSON",
        '"a text"',
        '{"input_text": "\\ud800"}',
        {**VERTEX, "margin": -1},
    )
    loaded = load_preferences(path)
    assert loaded.records == [{**VERTEX, "extra": [1]}]
    assert loaded.dropped == {
        "bad or missing `choice`": 2,
        "an empty answer": 1,
        "equal answers": 1,
        "bad or missing `candidate_1`": 1,
        "bad or missing `input_text`": 1,
        "fields of no known shape": 1,
        "not a JSON object": 3,
        "bad or missing `margin`": 1,
    }


RANKING = {"input_text": "a post", "candidates": ["a", "b", "c"], "ranking": [2, [0, 1]]}


def test_a_ranking_gives_all_its_pairs():
    tied = {**RANKING, "ranking": [[0, 1, 2]]}
    loaded = as_preferences([RANKING, tied, {**RANKING, "ranking": [0, 1]}])
    assert [answers(record) for record in loaded.records] == [("c", "a"), ("c", "b")]
    assert loaded.records == rankings_to_preferences([RANKING, tied])
    assert loaded.dropped == {"a ranking that prefers nothing": 1, "bad or missing `ranking`": 1}
    assert loaded.read == 3


def test_a_file_of_which_nothing_can_be_used_is_an_error(tmp_path):
    path = write(tmp_path / "none.jsonl", {"a": 1}, {"a": 2})
    with pytest.raises(
        DataError,
        match=r"no usable preferences\. 0 records from 2 rows; dropped 2.*Known: .*hh-rlhf",
    ):
        load_preferences(path)
    with pytest.raises(DataError, match=r"missing.jsonl: no such file"):
        load_preferences(tmp_path / "missing.jsonl")
    whole = gzip.compress(b'{"a": 1}' * 9)
    for content in (b"no gzip", whole[:-4], whole[:12] + b"\xff" * 9):
        (tmp_path / "broken.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.gz: cannot be read \(\w"):
            load_preferences(tmp_path / "broken.gz")


# Shapes

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [USER, {"role": "assistant", "content": "Because."}]


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


LONG = "\n\nSystem: Be brief.\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: Why?\n\nAssistant:"
DEMONSTRATIONS = {
    "texts": ({"prompt": "Why? ", "completion": " Yes."}, "Why? ", " Yes."),
    "messages": ({"prompt": [USER], "completion": [says("Yes.")]}, "Why?", "Yes."),
    "a text as the prompt of messages": (
        {"prompt": "Why?", "completion": [says("Yes.")]},
        "Why?",
        "Yes.",
    ),
    "chat": ({"messages": [USER, says("Yes.")]}, "Why?", "Yes."),
    "long chat": ({"messages": [SYSTEM, *FIRST, USER, says("Yes.")]}, LONG, "Yes."),
    "JSON in a text": ({"messages": json.dumps([USER, says("Yes.")])}, "Why?", "Yes."),
    "columns of messages": (
        {"messages": {"role": ["user", "assistant"], "content": ["Why?", "Yes."]}},
        "Why?",
        "Yes.",
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Yes."}]},
        "Why?",
        "Yes.",
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
                says("Yes."),
            ]
        },
        "Why?",
        "Yes.",
    ),
    "HelpSteer": ({"prompt": "Why?", "response": "Yes.", "helpfulness": 3}, "Why?", "Yes."),
    "a thumb up": ({"prompt": "Why?", "completion": "Yes.", "label": True}, "Why?", "Yes."),
    "no messages": ({"prompt": "[not JSON", "completion": "[1, 2]"}, "[not JSON", "[1, 2]"),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_of_every_shape(name):
    row, prompt, answer = DEMONSTRATIONS[name]
    (record,) = convert([row], "demonstrations").records
    assert (record["input_text"], record["output_text"]) == (prompt, answer)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_prompts_of_every_shape(name):
    row, prompt, _ = DEMONSTRATIONS[name]
    (record,) = convert([row], "prompts").records
    assert record["input_text"] == prompt


PAIRS = {
    "explicit prompt as text": (
        {"prompt": "Why?", "chosen": "Yes.", "rejected": "No!"},
        ("Why?", "Yes.", "No!"),
    ),
    "answers that repeat the prompt": (
        {"prompt": "Why?", "chosen": "Why? Yes.", "rejected": "Why? No!"},
        ("Why?", " Yes.", " No!"),
    ),
    "explicit prompt as messages": (
        {"prompt": [SYSTEM, *FIRST, USER], "chosen": [says("Yes.")], "rejected": [says("No!")]},
        (LONG, "Yes.", "No!"),
    ),
    "UltraFeedback, binarised": (
        {"prompt": "Why?", "chosen": [USER, says("Yes.")], "rejected": [USER, says("No!")]},
        ("Why?", "Yes.", "No!"),
    ),
    "implicit prompt": (
        {"chosen": [*FIRST, USER, says("Yes.")], "rejected": [*FIRST, USER, says("No!")]},
        (LONG.replace("\n\nSystem: Be brief.", ""), "Yes.", "No!"),
    ),
    "conversations that part early": (
        {"chosen": [USER, says("Yes."), USER, says("So.")], "rejected": [USER, says("No!")]},
        ("Why?", "Yes.\n\nHuman: Why?\n\nAssistant: So.", "No!"),
    ),
    "one conversation goes on": (
        {"chosen": FIRST, "rejected": [*FIRST[:1], says("No!"), USER]},
        ("Why?", "Because.", "No!\n\nHuman: Why?"),
    ),
    "Orca pairs": (
        {"system": "Be brief.", "question": "Why?", "chosen": "Yes.", "rejected": "No!"},
        ("System: Be brief.\n\nQuestion: Why?\n\nAnswer:", "Yes.", "No!"),
    ),
    "UltraFeedback": (
        {
            "instruction": "Why?",
            "completions": [
                {"response": "No!", "overall_score": 2.0},
                {"response": "Yes.", "overall_score": 8.5},
                {"response": "left out", "overall_score": None},
            ],
        },
        ("Why?", "Yes.", "No!"),
    ),
    "HelpSteer2": (
        {"prompt": "Why?", "response_1": "No!", "response_2": "Yes.", "preference_strength": 2},
        ("Why?", "Yes.", "No!"),
    ),
    "HelpSteer3": (
        {"context": [USER], "response1": "Yes.", "response2": "No!", "overall_preference": -1},
        ("Why?", "Yes.", "No!"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_preferences_of_every_shape(name):
    row, (prompt, better, worse) = PAIRS[name]
    (record,) = as_preferences([row]).records
    assert record["input_text"] == prompt
    assert answers(record) == (better, worse)
    assert "chosen" not in record and "completions" not in record


def test_neighbouring_answers_of_helpsteer_to_one_prompt_are_compared():
    rows = [
        {"prompt": prompt, "response": f"{prompt} {score} {i}", "helpfulness": score}
        for i, (prompt, score) in enumerate(zip("aabbbccd", (3, 1, 0, 2, 4, 2, 2, 1), strict=True))
    ]
    loaded = as_preferences(rows)
    assert [(record["input_text"], *answers(record)) for record in loaded.records] == [
        ("a", "a 3 0", "a 1 1"),
        ("b", "b 2 3", "b 0 2"),
        ("b", "b 4 4", "b 0 2"),
        ("b", "b 4 4", "b 2 3"),
    ]
    assert loaded.dropped == {
        "a ranking that prefers nothing": 2,
        "fewer than two answers with a score": 1,
    }
    assert loaded.read == len(rows)


UNUSABLE = [
    ("demonstrations", {"messages": [says("Yes.")]}, "does not end with the user's turn"),
    ("demonstrations", {"messages": FIRST[:1]}, "does not begin with the assistant's turn"),
    ("demonstrations", {"messages": []}, "neither a text nor messages"),
    ("demonstrations", {"messages": ["Why?"]}, "neither a text nor messages"),
    ("demonstrations", {"messages": "Why?"}, "messages that are a text"),
    ("demonstrations", {"messages": [USER, says(" ")]}, "an empty answer"),
    ("demonstrations", {"messages": [USER, says(None)]}, "a message without text"),
    ("demonstrations", {"messages": [USER | {"role": "tool"}, *FIRST]}, "whose role is not"),
    ("demonstrations", {"messages": [USER | {"content": [{"type": "image"}]}]}, "more than text"),
    ("demonstrations", {"prompt": "Why?", "completion": "\u200b\0"}, "an empty answer"),
    ("demonstrations", {"prompt": "Why?", "completion": "x", "label": False}, "marked bad"),
    ("prompts", {"prompt": None}, "a missing text"),
    ("prompts", {"messages": [SYSTEM]}, "does not end with the user's turn"),
    ("preferences", {"chosen": FIRST, "rejected": FIRST}, "equal answers"),
    ("preferences", {"chosen": FIRST, "rejected": "No!"}, "messages compared with a text"),
    ("preferences", {"chosen": FIRST, "rejected": [SYSTEM, *FIRST]}, "no common beginning"),
    ("preferences", {"chosen": FIRST[1:], "rejected": [says("No!")]}, "a missing text"),
    ("preferences", {"instruction": "a", "completions": [{"response": "b"}]}, "fewer than two"),
    (
        "preferences",
        {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": 0},
        "a tie",
    ),
    ("thumbs", {"prompt": "a", "completion": "b", "label": "yes"}, "not true or false"),
]


@pytest.mark.parametrize(("kind", "row", "reason"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_an_unusable_row_is_counted_with_its_reason(kind, row, reason):
    loaded = convert([row], kind)
    assert not loaded.records and loaded.dropped.total() == 1
    assert reason in next(iter(loaded.dropped))


def test_thumbs_as_texts_and_as_messages():
    rows = [
        {"prompt": "Why?", "completion": "Yes.", "label": True},
        {"prompt": [USER], "completion": [says("No!")], "label": 0},
    ]
    assert convert(rows, "thumbs").records == [
        {"input_text": "Why?", "output_text": "Yes.", "label": True},
        {"input_text": "Why?", "output_text": "No!", "label": False},
    ]


def test_a_margin_or_an_annotator_of_others_is_not_taken_for_ours():
    row = {"chosen": FIRST, "rejected": [USER, says("No!")], "margin": -3, "annotator": 7, "id": 1}
    (record,) = as_preferences([row]).records
    assert record["id"] == 1 and not {"margin", "annotator"} & set(record)


# What a stage reads


def test_a_stage_reads_our_columns_strictly_and_others_tolerantly(tmp_path, caplog):
    ours = write(tmp_path / "ours.jsonl", {"input_text": "a"}, {"prompt": "b"})
    with pytest.raises(DataError, match="line 2: the field `input_text` is missing"):
        read_file(ours, "prompts")
    with pytest.raises(DataError, match="line 1: the field `input_text` is missing"):
        read_file(write(tmp_path / "empty.jsonl", {}, {"prompt": "b"}), "prompts")
    others = write(tmp_path / "others.jsonl", {"prompt": "b"}, {"prompt": " "}, "no JSON")
    assert read_file(others, "prompts") == [{"input_text": "b"}]
    assert "dropped 1: an empty prompt; dropped 1: not a JSON object" in caplog.text


def test_unknown_columns_are_an_error_that_names_those_known_and_those_found(tmp_path):
    path = write(tmp_path / "other.jsonl", {"title": "a", "body": "b"})
    with pytest.raises(
        DataError, match=r"for thumbs. Found: title, body. Known: .*\(TRL\)"
    ) as error:
        read_file(path, "thumbs")
    assert str(path) in str(error.value) and "label" in str(error.value)
