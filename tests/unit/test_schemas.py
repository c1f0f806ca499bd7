"""The records: strict reading, atomic writing, one way to format a prompt."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from rlhf_helpers import jsonl, schemas
from rlhf_helpers.schemas import DataError, format_prompt, format_response

PREFERENCE = {"input_text": "a post [summary]: ", "candidate_0": "x", "candidate_1": "y"}
RANKING = {"input_text": "a post [summary]: ", "candidates": ["a", "b", "c", "d"]}
GOOD = {
    schemas.read_preferences: {**PREFERENCE, "choice": 1, "annotator": "ann"},
    schemas.read_prompts: {"input_text": "a post [summary]: "},
    schemas.read_demonstrations: {"input_text": "a post [summary]: ", "output_text": "short"},
    schemas.read_rankings: {**RANKING, "ranking": [2, [0, 3], 1]},
    schemas.read_texts: {"text": "a document"},
    schemas.read_thumbs: {"input_text": "a post", "output_text": "short", "label": False},
    schemas.read_predictions: {"inputs": {"inputs_pretokenized": "a post"}, "prediction": "short"},
}
READERS = pytest.mark.parametrize("read", GOOD, ids=lambda read: read.__name__)
# Line separators of str.splitlines that must not end a record, and other rare characters.
RARE = 'a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1e e\u0301 \U0001f600 \ufeff \x00 \r\n \\ " 漢字'
TEXTS = st.text().filter(lambda text: not jsonl.is_blank(text))


def json_bytes(record: object) -> bytes:
    return json.dumps(record).encode()


def message_of(read, path) -> str:
    """The message of the one error that reading raises; no second one is shown with it."""
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


@READERS
def test_good_records_are_read_with_unknown_fields(tmp_path, read):
    record = {**GOOD[read], "source": {"nested": [1, None, 2.5]}}
    path = tmp_path / "good.jsonl"
    schemas.write_jsonl(path, [record, GOOD[read]])
    assert read(path) == [record, GOOD[read]]
    assert read(str(path)) == read(path)


@READERS
def test_blank_lines_bom_and_windows_line_ends_are_accepted(tmp_path, read):
    line = json_bytes(GOOD[read])
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + line + b"\r\n \t\r\n\n" + line)
    assert read(path) == [GOOD[read]] * 2


NOT_JSON = [
    (b"hello", "not JSON (Expecting value: column 1 (char 0)). Write one JSON object"),
    (b'{"input_text": "cut o', "Write one JSON object"),
    (b'{"input_text": "a"} {"input_text": "b"}', "Write one JSON object"),
    (b"{'input_text': 'a'}", "Write one JSON object"),
    (b'{"input_text": "a", "score": NaN}', "Write one JSON object"),
    (b'{"input_text": "a", "score": 1e999}', "Write one JSON object"),
    (b'{"input_text": "a", "score": ' + b"9" * 5000 + b"}", "Write one JSON object"),
    (b"[" * 200_000, "Write one JSON object"),
    (b"<!DOCTYPE html><html>", "a web page (HTML) saved by mistake"),
    (b"  <!doctype HTML>", "Download the file itself"),
    (b"<HTML lang='en'>\xff", "git checkout data"),
    (b'[{"input_text": "a"}]', "is not a JSON object. Write one {...}"),
    (b'"text"', '"text" is not a JSON object'),
    (b"null", "null is not a JSON object"),
    (b'{"input_text": "caf\xe9"}', "byte 20 of the line). Save the file as UTF-8"),
    ('{"input_text": "a"}'.encode("utf-16"), "Save the file as UTF-8"),
    (rb'{"input_text": "\ud800"}', "surrogate pair"),
    (b'{"input_text": "a", "choice": 0, "choice": 1}', 'field "choice" occurs twice. Delete one'),
    (b'{"input_text": "a", "note": [{"b": 1, "b": 1}]}', 'field "b" occurs twice'),
    (rb'{"input_text": "a", "note": ["\uDC00"]}', "write the whole character"),
]


@READERS
@pytest.mark.parametrize(("line", "remedy"), NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_line_without_a_json_object(tmp_path, read, line, remedy):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json_bytes(GOOD[read]) + b"\n\n" + line + b"\nnot reached")
    message = message_of(read, path)
    assert message.startswith(f"{path}, line 3: ")
    assert remedy in message
    assert len(message) < 500


def test_surrogate_pairs_are_whole_characters(tmp_path):
    path = tmp_path / "pair.jsonl"
    path.write_bytes(rb'{"text": "\ud83d\ude00"}')
    assert schemas.read_texts(path) == [{"text": "\U0001f600"}]


BLANK = ("", " \n\t\u2028", "\u200b\ufeff\u2060\0")


def bad_fields():
    """(reader, record, piece of the remedy) for each text field missing, blank or of wrong type."""
    for read, good in GOOD.items():
        for field in good:
            if field != "annotator":
                rest = {key: good[key] for key in good if key != field}
                yield read, rest, f"`{field}` is missing. Add it"
            if isinstance(good[field], str):
                for blank in BLANK if field != "prediction" else ():
                    yield read, {**good, field: blank}, f"`{field}` is empty. Fill it"
                for wrong in (None, 7, True, ["a"], {"a": "b"}):
                    shown = json.dumps(wrong)
                    yield read, {**good, field: wrong}, f"`{field}` is {shown}. Write a text"


BAD_CHOICES = [2, -1, True, False, 1.0, 0.0, "1", None, [0]]
BAD_CANDIDATES = [
    (None, "a list of at least two"),
    ("ab", "a list of at least two"),
    ([], "a list of at least two"),
    (["a"], "a list of at least two"),
    ({"0": "a", "1": "b"}, "a list of at least two"),
    (["a", " "], "`candidates[1]` is empty. Fill it"),
    (["a", "b", 3], "`candidates[2]` is 3. Write a text"),
]
BAD_RANKINGS = [
    *(None, 3, "0123", {"0": 1}, [], [0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4], [0, 1, 2, 3, 4]),
    *([0, 1, 2, -1], [0, True, 2, 3], [0, 1.0, 2, 3], [0, "1", 2, 3], [0, None, 2, 3]),
    *([[0, 1], [1, 2, 3]], [[[0, 1]], 2, 3], [[], 0, 1, 2, 3], [{"0": 1}, 1, 2, 3]),
]
BAD_RECORDS = [
    *bad_fields(),
    *(
        (schemas.read_preferences, {**PREFERENCE, "choice": choice}, "Write 0 if candidate_0")
        for choice in BAD_CHOICES
    ),
    *(
        (schemas.read_preferences, {**PREFERENCE, "choice": 0, "margin": margin}, "Write a number")
        for margin in (-0.5, "1", None, True, [1], 10**400)
    ),
    *(
        (schemas.read_thumbs, {**GOOD[schemas.read_thumbs], "label": label}, "Write true for")
        for label in (0, 1, "true", None)
    ),
    *(
        (
            schemas.read_preferences,
            {**PREFERENCE, "candidate_0": text, "choice": 0},
            "Delete this line or give two different answers",
        )
        for text in ("y", " y\n")
    ),
    *(
        (schemas.read_rankings, {**RANKING, "candidates": candidates, "ranking": [0, 1]}, remedy)
        for candidates, remedy in BAD_CANDIDATES
    ),
    *(
        (
            schemas.read_predictions,
            {"inputs": inputs, "prediction": "a"},
            "holds the prompt as text",
        )
        for inputs in (None, "a post", [], {}, {"inputs": "a"}, {"inputs_pretokenized": " "})
    ),
    *(
        (schemas.read_rankings, {**RANKING, "ranking": ranking}, "Name each of 0 to 3 once")
        for ranking in BAD_RANKINGS
    ),
]


@pytest.mark.parametrize(("read", "record", "remedy"), BAD_RECORDS, ids=range(len(BAD_RECORDS)))
def test_a_bad_field(tmp_path, read, record, remedy):
    path = tmp_path / "bad.jsonl"
    schemas.write_jsonl(path, [GOOD[read], GOOD[read], record, record])
    message = message_of(read, path)
    assert message.startswith(f"{path}, line 3: ")
    assert remedy in message


def test_a_model_may_have_answered_nothing(tmp_path):
    path = tmp_path / "predictions.jsonl"
    record = {"inputs": {"inputs_pretokenized": "a post"}, "prediction": ""}
    schemas.write_jsonl(path, [record])
    assert schemas.read_predictions(path) == [record]


def test_a_missing_field_names_those_found(tmp_path):
    path = tmp_path / "orca.jsonl"
    schemas.write_jsonl(path, [{"question": "a", "response": "b"}])
    assert "(found: question, response)" in message_of(schemas.read_demonstrations, path)


@READERS
@pytest.mark.parametrize("content", [b"", b"\n\r\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, read, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    message = message_of(read, path)
    assert message.startswith(f"{path}, line 1: the file is empty")
    assert "git checkout data" in message


@READERS
def test_a_missing_file_a_folder_and_an_unreadable_file(tmp_path, read, monkeypatch):
    missing = message_of(read, tmp_path / "none.jsonl")
    assert missing.startswith(f"{tmp_path / 'none.jsonl'}: no such file.")
    assert "`git checkout data`" in missing
    assert "`python -m rlhf_helpers data`" in missing

    folder = message_of(read, tmp_path)
    assert folder.startswith(f"{tmp_path}: a folder. Name one JSONL file")

    # The mode bits would not stop root, under whom tests often run in containers.
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "locked.jsonl"
    path.write_bytes(json_bytes(GOOD[read]))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    locked = message_of(read, path)
    assert locked.startswith(f"{path}: cannot be read (Permission denied). Check")


def test_a_file_taken_for_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "prompts.jsonl"
    assert "Check the path" in message_of(schemas.read_prompts, path)


@given(st.lists(st.fixed_dictionaries({"input_text": TEXTS, "extra": st.text()}), min_size=1))
@example([{"input_text": RARE, "extra": RARE}] * 2)
def test_prompts_survive_writing_and_reading(records):
    check_round_trip(schemas.read_prompts, records)


@given(
    st.lists(TEXTS, min_size=2, unique_by=str.strip).flatmap(
        lambda texts: st.fixed_dictionaries(
            {
                "input_text": TEXTS,
                "candidates": st.just(texts),
                "ranking": st.permutations(range(len(texts))),
            }
        )
    )
)
def test_rankings_and_their_pairs_survive_writing_and_reading(record):
    check_round_trip(schemas.read_rankings, [record])
    check_round_trip(schemas.read_preferences, schemas.ranking_to_pairs(record))


def check_round_trip(read, records):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        schemas.write_jsonl(path, records)
        content = path.read_bytes()
        assert content.count(b"\n") == len(records)
        assert content.endswith(b"\n")
        assert read(path) == records
        schemas.write_jsonl(path, read(path))
        assert path.read_bytes() == content
        assert os.listdir(folder) == [path.name]


def test_written_bytes(tmp_path):
    path = tmp_path / "records.jsonl"
    schemas.write_jsonl(path, ({"text": text, "n": 1} for text in ("é\u2028", "b\r\n")))
    assert (
        path.read_bytes()
        == ('{"text": "é\u2028", "n": 1}\n' + r'{"text": "b\r\n", "n": 1}' + "\n").encode()
    )


@pytest.mark.parametrize("value", ["\ud800", float("nan"), float("inf"), b"bytes"])
def test_a_failed_write_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "records.jsonl"
    schemas.write_jsonl(path, [{"text": "old"}])
    with pytest.raises((ValueError, TypeError)):
        schemas.write_jsonl(path, [{"text": "new"}, {"text": value}])
    assert schemas.read_texts(path) == [{"text": "old"}]
    assert os.listdir(tmp_path) == [path.name]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    schemas.write_jsonl(path, [{"text": "old"}])

    def fail(source, target):
        assert Path(source).parent == tmp_path
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        schemas.write_jsonl(path, [{"text": "new"}])
    assert schemas.read_texts(path) == [{"text": "old"}]
    assert os.listdir(tmp_path) == [path.name]


def test_pairs_of_a_ranking_with_ties():
    record = {**RANKING, "ranking": [2, [0, 3], 1], "annotator": "ann"}
    pairs = schemas.ranking_to_pairs(record)
    found = [(pair["candidate_0"], pair["candidate_1"], pair["choice"]) for pair in pairs]
    assert found == [("a", "b", 0), ("a", "c", 1), ("b", "c", 1), ("b", "d", 1), ("c", "d", 0)]
    for pair in pairs:
        schemas.check_preference(pair)
        assert pair.keys() == {*PREFERENCE, "choice", "annotator"}
        assert pair["input_text"] == record["input_text"]
        assert pair["annotator"] == "ann"


def test_pairs_of_a_ranking_skip_equal_texts_and_full_ties():
    record = {"input_text": "p", "candidates": ["a", "a ", "b"], "ranking": [0, 1, 2]}
    found = [(pair["candidate_0"], pair["choice"]) for pair in schemas.ranking_to_pairs(record)]
    assert found == [("a", 0), ("a ", 0)]
    assert schemas.ranking_to_pairs({**RANKING, "ranking": [[3, 1, 0, 2]]}) == []


@given(st.integers(2, 7).flatmap(lambda size: st.permutations(range(size))))
def test_every_pair_of_a_ranking_without_ties_follows_its_order(ranking):
    size = len(ranking)
    candidates = [f"answer {index}" for index in range(size)]
    record = {"input_text": "p", "candidates": candidates, "ranking": ranking}
    pairs = schemas.ranking_to_pairs(record)
    assert len(pairs) == size * (size - 1) // 2
    for pair in pairs:
        better = candidates.index(pair[f"candidate_{pair['choice']}"])
        worse = candidates.index(pair[f"candidate_{1 - pair['choice']}"])
        assert ranking.index(better) < ranking.index(worse)


def test_formatting():
    assert format_prompt("A post. [summary]: ") == "A post. [summary]:"
    assert (
        format_prompt("A post. [summary]: ", "Summarize in less than 50 words. ")
        == "Summarize in less than 50 words. A post. [summary]:"
    )
    assert format_prompt("A post.", " ") == "A post."
    assert format_prompt(format_prompt("A post. ")) == "A post."
    assert format_response(" a summary\n") == format_response("a summary") == " a summary"


@pytest.fixture(scope="module")
def tokenizer():
    corpus = [
        "A post about my cat. [summary]: The cat's friend didn't sleep.",
        "  Naïve café, 漢字 and 😀 emoji [summary]: short, 42 words... [summary]: ok",
    ]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(corpus * 4, vocab_size=400, min_frequency=2)
    return tokenizer


@given(input_text=TEXTS, output_text=TEXTS, instruction=st.text())
@example("A post about my cat. [summary]: ", "The cat's friend didn't sleep.", "")
@example("A post about my cat. [summary]: ", " \n 42 words", "Summarize in less than 50 words.")
@example("Ends in a blank line \n\n", "'s a contraction", " ")
@example("漢字 😀 e\u0301 [summary]:\u3000", "\u0301combining 😀", "Fasse kürzer zusammen:")
@example(RARE, RARE, RARE)
def test_tokens_of_the_prompt_are_a_prefix_of_the_whole(
    tokenizer, input_text, output_text, instruction
):
    prompt = format_prompt(input_text, instruction)
    response = format_response(output_text)
    prompt_ids = tokenizer.encode(prompt).ids
    whole_ids = tokenizer.encode(prompt + response).ids
    assert whole_ids[: len(prompt_ids)] == prompt_ids
    assert tokenizer.decode(whole_ids[len(prompt_ids) :]) == response


def test_without_formatting_the_blank_breaks_the_prefix(tokenizer):
    """What format_prompt is there for: a blank left on the prompt merges with the next word."""
    prompt = "A post about my cat. [summary]: "
    prompt_ids = tokenizer.encode(prompt).ids
    assert tokenizer.encode(prompt + "The cat").ids[: len(prompt_ids)] != prompt_ids


# Comparisons


def test_the_first_record_tells_preferences_from_rankings(tmp_path):
    path = tmp_path / "comparisons.jsonl"
    graded = {**PREFERENCE, "choice": 1, "margin": 0.5}
    for records in ([graded, {**PREFERENCE, "choice": 0}], [GOOD[schemas.read_rankings]] * 2):
        schemas.write_jsonl(path, records)
        assert schemas.read_comparisons(path) == records
    for records, field in (
        ([graded, GOOD[schemas.read_rankings]], "candidate_0"),
        ([GOOD[schemas.read_rankings], graded], "candidates"),
    ):
        schemas.write_jsonl(path, records)
        message = message_of(schemas.read_comparisons, path)
        assert message.startswith(f"{path}, line 2: the field `{field}` is missing")
