"""Streamed data sets: small Deep Lake and Parquet sets with others' columns, written here."""

import base64
import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import deeplake
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers.schemas import DataError
from rlhf_helpers.sources import streams
from rlhf_helpers.sources.streams import count_rows, is_stream, stream

# A data set of three rows that Deep Lake 3.9.52 wrote (columns of OpenOrca): a tar.xz.
VERSION_3 = """
    /Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4Hf/BFxdADoaSiDDi+RWV9yPpaexzKd6ocz8f+Tv0oAhGnwKddlkHocVW2mlkR
    OpfHeE/VHNdSVsrCEaMnY8n3nYN5Cfa6mZLOKYkgoCgamndkcOZVCorbyOtKJ4bBE7biB8QKPNO+GFPi9mdYrEOmv7Zcrd
    dJSSnIevz2VR4pBpf63/WSOHBgDwe1+5WBdcXlBjcJqyBMN6eNPaZc7ykyGjaz7oJ5J7cRQlS9sC+EX7FNSAv3KgNFmhrW
    qtr0Rzv1K3EOhlVkMrH7ZKhS22Zr0BCUP2riqumKM0nYwcCZnGIqWMSHKrgQ2fFR56SxMjNjxlDlYfXcqjyLVkE4O+RMIv
    eSWedrxOYlqsTz3YL7smS8nuFE06GR5Q+DwMUP6+8QtkeBI/UXB2Y9KvE3Zt98WytXTjerO8cVIDDq1ZR/oBRxA8sWCvGa
    a+H3JDb3pil8td3apqfwHZuz7acLy1+0IpCGQK3qw6xu8CFMWhKQ8x/1ror920i+kwBEolsjIBwSc1ZA1F25q8s9cj84kk
    N3riLXGi8XE5hDH6H7kk/Z1ZkDubq3hK3c4rV69qXcajFdN/zNiSXWUwDlbjJV8sh6nvsC3+eFeosApR2rFyg4G9kUFw3K
    Xf/DgHJ3c3ubfIK/nn6K0XOhCY40Gp4Vkl3bCx1Tvi8U36ScGr/RkyhsI+EQwB2dflu7xyWrl/sFhRpmhZ876FaYdxZlUI
    s270n51cF9ZlMrRqJizVedBZAeyMcNWphklrkLFQ4ZBd7lDrGGNd/sLSBAmrG+4eRIycb6RbJOzvlVNrwqJh0Nk24utTjm
    IsYqTq90lPeNYuFbpTywfLSFblZsPlwxUiNcjb5Q1Yt9B+CKhwjeAIDbBQ3TVBXSqw9yV44I5K9HNvGMPshSd+0Rh5yUMD
    hhJxCYeEguHVW/RUVK5neQa3OIewpxc7BRQgD6iN/sVTsBANfS1HdrhFlPWzxv86ShN9TRrN00pA5Nte8mF8x2zuhLQ7ic
    0NZL2zSL4J+feW2fEcU6iJKwVCGN+tfzKGmReYjDA61Z+covJgdHIniLoPi3RUGmYv1JnCbFpXym4G6FyCUXz0j3o6gFWT
    wUG3srXYLVjwZ8l3Yr2u58Ksow9f2ZW5+q30S9bCYCkU4SD4XThguMMBXQKQ1zEJ+YGasJYAOdtjvQb+SU94G6GNUohclh
    iey1b/y+ZnCnZ8OTM12u+yvOPytizM0g3Ef8PBD2CkdxnruO7YRIAomSxHzMN9GaKe4gkd4bXTmBGRUFB1CLT7PXNCZC4C
    vrriXqH6e2cxK5oFjUJGFdUfPVp58EaV+P4gKRLuk3FD24+IZGmtZEcq5Ef3gdJzJNeniKMEpDQP0W18F2NLMTTY2rXmxi
    a+zZ/FwoB0F4qq77RDKjAkBGaeEEp0wlnweZKhmzjF5agqn9mE8UEAV8ffGtq2JQeznqX04wAlb4nSJwy+ZpB0TKNsFnMq
    TG1dtOdwj/as5h4HC2CXdY67+AALM7SxIC6YJAAB+AiA8AEAwvBiS7HEZ/sCAAAAAARZWg==
"""


def orca(rows: int) -> dict[str, list]:
    return {
        "id": [f"flan.{i}" for i in range(rows)],
        "system_prompt": ["Be kind." if i % 2 else "" for i in range(rows)],
        "question": [f"What is {i}?" for i in range(rows)],
        "response": [f"It is {i}." for i in range(rows)],
    }


def write_parquet(columns: dict[str, list], path: Path) -> Path:
    pd.DataFrame(columns).to_parquet(path, row_group_size=700)
    return path


def write_lake(columns: dict[str, list], path: Path) -> Path:
    lake = deeplake.create(str(path))
    for name, values in columns.items():
        is_text = isinstance(values[0], str)
        lake.add_column(name, deeplake.types.Text() if is_text else deeplake.types.Int32())
    lake.append(columns)
    lake.commit()
    return path


WRITERS = {"data.parquet": write_parquet, "lake": write_lake}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Writes columns as a Parquet file, then as a Deep Lake data set."""
    return lambda columns: WRITERS[request.param](columns, tmp_path / request.param)


@pytest.fixture(scope="module", params=WRITERS)
def source(request, tmp_path_factory) -> Path:
    """2,500 rows of OpenOrca's columns: more than are read at once."""
    return WRITERS[request.param](orca(2500), tmp_path_factory.mktemp("orca") / request.param)


@pytest.fixture
def version_3(tmp_path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(VERSION_3))) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "tiny3"


# Others' columns, our records


def test_openorca_gives_questions_with_and_without_a_system_prompt(write):
    assert list(stream(write(orca(2)), "demonstrations", buffer=0)) == [
        {"input_text": "Question: What is 0?\n\nAnswer:", "output_text": "It is 0."},
        {
            "input_text": "System: Be kind.\n\nQuestion: What is 1?\n\nAnswer:",
            "output_text": "It is 1.",
        },
    ]


def test_alpacas_instruction_is_the_system_prompt_of_an_input_else_the_question(write):
    columns = {
        "instruction": ["Be brief.", "Name a colour."],
        "input": ["What is tea?", ""],
        "output": ["A drink.", "Red."],
    }
    data = write(columns)
    prompts = [
        "System: Be brief.\n\nQuestion: What is tea?\n\nAnswer:",
        "Question: Name a colour.\n\nAnswer:",
    ]
    assert list(stream(data, "prompts", buffer=0)) == [{"input_text": text} for text in prompts]
    answers = [record["output_text"] for record in stream(data, "demonstrations", buffer=0)]
    assert answers == columns["output"]


def test_hh_rlhf_gives_preferences(write):
    shared = "\n\nHuman: A pie?\n\nAssistant:"
    data = write({"chosen": [f"{shared} Take six apples."], "rejected": [f"{shared} No."]})
    (record,) = stream(data, "preferences")
    assert record["input_text"] == shared
    assert record[f"candidate_{record['choice']}"] == "Take six apples."


def test_our_own_columns_stay_as_they_are(write):
    record = {"input_text": "A", "candidate_0": "b", "candidate_1": "c", "choice": 1}
    data = write({name: [value] for name, value in record.items()})
    assert list(stream(data, "preferences")) == [record]
    assert list(stream(data, "prompts")) == [{"input_text": "A"}]


MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Yes."}]


def test_messages_are_read_from_parquet_and_deep_lake(tmp_path):
    frame = {"messages": [MESSAGES] * 3}
    write_parquet(frame, tmp_path / "data.parquet")
    lake = deeplake.create(str(tmp_path / "lake"))
    lake.add_column("messages", deeplake.types.Sequence(deeplake.types.Dict()))
    lake.append(frame)
    lake.commit()
    write_lake({"messages": [json.dumps(MESSAGES)] * 3}, tmp_path / "texts")
    for name in ("data.parquet", "lake", "texts"):
        records = list(stream(tmp_path / name, "demonstrations"))
        assert records == [{"input_text": "Why?", "output_text": "Yes."}] * 3, name


def test_thumbs_and_scored_answers_are_streamed_too(tmp_path):
    thumbs = {"prompt": ["Why?"] * 2, "completion": ["Yes.", "No!"], "label": [True, False]}
    data = write_parquet(thumbs, tmp_path / "thumbs.parquet")
    assert [record["label"] for record in stream(data, "thumbs", buffer=0)] == [True, False]
    scored = {"prompt": ["Why?"] * 2, "response": ["Yes.", "No!"], "helpfulness": [4, 0]}
    (record,) = stream(write_parquet(scored, tmp_path / "scored.parquet"), "preferences")
    assert record[f"candidate_{record['choice']}"] == "Yes."


# Sources


def test_a_data_set_of_deep_lake_3_is_read_too(version_3):
    with pytest.raises(deeplake.LogNotexistsError):
        deeplake.open_read_only(str(version_3))
    assert is_stream(version_3) and count_rows(version_3) == 3
    records = list(stream(version_3, "demonstrations", buffer=0))
    assert [record["output_text"] for record in records] == ["It is 0.", "It is 1.", "It is 2."]
    assert [record["input_text"][:6] for record in records] == ["Questi", "System", "Questi"]


def test_a_folder_and_a_pattern_of_parquet_files(tmp_path):
    for part in range(3):
        write_parquet(orca(part + 1), tmp_path / f"part-{part}.parquet")
    assert count_rows(tmp_path) == len(list(stream(tmp_path, "prompts"))) == 6
    some = tmp_path / "part-[12].parquet"
    assert count_rows(some) == len(list(stream(some, "prompts"))) == 5


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """`datasets` takes a folder here for the hub's data set of the same name."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    write_parquet(orca(5), folder / "train-0.parquet")
    write_parquet(orca(3), folder / "test-0.parquet")
    return folder


@pytest.mark.parametrize(("split", "rows"), [("", 5), (":train", 5), (":test", 3)])
def test_a_data_set_of_the_hub_has_splits(hub, split, rows):
    assert len(list(stream(f"hf://org/name{split}", "demonstrations"))) == rows


def test_a_data_set_of_the_hub_may_be_jsonl_whose_columns_only_its_rows_tell(hub):
    for file in hub.glob("*.parquet"):
        file.unlink()
    dialogues = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No",
    }
    with gzip.open(hub / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((json.dumps(dialogues) + "\n") * 3)
    records = list(stream("hf://org/name", "preferences"))
    assert len(records) == 3
    assert sorted(records[0]) == ["candidate_0", "candidate_1", "choice", "input_text"]


def test_the_hub_may_tell_the_number_of_rows(hub):
    with pytest.raises(DataError, match="does not state its number of rows"):
        count_rows("hf://org/name")
    splits = "splits:\n  - name: train\n    num_examples: 5\n    num_bytes: 1\n"
    (hub / "README.md").write_text(f"---\ndataset_info:\n  {splits}---\n")
    assert count_rows("hf://org/name") == 5


def test_what_is_a_stream_and_what_a_jsonl_file(source, tmp_path):
    (tmp_path / "data.jsonl").touch()
    assert is_stream(source) and is_stream("al://org/name") and is_stream("hf://org/name:test")
    assert is_stream(Path("hf://org/name"))  # Path drops a slash
    assert is_stream("hub://org/name") and is_stream("missing.parquet")  # so `stream` explains
    for name in ("", "data.jsonl", "data.jsonl.gz"):
        assert not is_stream(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ("hub://org/name", "al://"),
        ("hf://org/name", "HF_HUB_OFFLINE=0"),
        ("missing.parquet", "Check the path"),
        ("missing", "Check the path"),
    ],
)
@pytest.mark.parametrize("opened", [lambda data: stream(data, "prompts"), count_rows])
def test_a_source_that_cannot_be_opened_is_named_with_the_remedy(data, remedy, opened):
    with pytest.raises(DataError, match=remedy) as error:
        opened(data)
    assert data in str(error.value)


def test_deep_lakes_cloud_out_of_reach_is_named_with_the_remedy(monkeypatch):
    def unreachable(path):
        raise RuntimeError(f"Could not resolve host\nfor {path}")

    monkeypatch.setattr(deeplake, "open_read_only", unreachable)
    monkeypatch.setattr(deeplake, "query", unreachable)
    with pytest.raises(DataError, match=r"^al://org/name: .* host for .*al://org/name.* log in"):
        stream("al://org/name", "prompts")


def test_other_columns_are_an_error_that_names_them(write):
    with pytest.raises(DataError, match=r"Found: title, text. Known: .*question, response"):
        stream(write({"title": ["a"], "text": ["b"]}), "demonstrations")


# Order


def answers(data: Path, **settings) -> list[str]:
    return [record["output_text"] for record in stream(data, "demonstrations", **settings)]


def test_blocks_are_shuffled_and_no_row_is_lost_or_doubled(source):
    assert count_rows(source) == 2500
    straight = answers(source, buffer=0)
    assert straight == orca(2500)["response"]
    mixed = answers(source, seed=1, buffer=600)
    for start in range(0, 2500, 600):
        block = mixed[start : start + 600]
        assert sorted(block) == sorted(straight[start : start + 600]) and block != sorted(block)
    assert mixed == answers(source, seed=1, buffer=600) != answers(source, seed=2, buffer=600)


def test_every_epoch_has_all_rows_in_an_order_of_its_own(source):
    twice = answers(source, buffer=500, epochs=2)
    assert sorted(twice[:2500]) == sorted(twice[2500:]) == sorted(orca(2500)["response"])
    assert twice[:2500] != twice[2500:]


@settings(max_examples=8)
@given(stop=st.integers(0, 5000), buffer=st.sampled_from([0, 600, 1000, 10_000]))
def test_a_resumed_stream_goes_on_with_just_the_rows_that_were_to_come(source, stop, buffer):
    def new():
        return stream(source, "demonstrations", seed=3, buffer=buffer, epochs=2)

    whole = list(new())
    first = new()
    head = list(islice(first, stop))
    second = new()
    second.load_state_dict(first.state_dict())
    assert head + list(second) == whole


# Bad rows


def test_bad_rows_are_dropped_and_counted_by_reason(tmp_path, caplog):
    columns = orca(20)
    columns["response"][3:5] = [None, ""]
    columns["question"][7] = " "
    data = write_parquet(columns, tmp_path / "data.parquet")
    dropped = Counter()
    with caplog.at_level("INFO", streams.logger.name):
        records = list(stream(data, "demonstrations", buffer=5, dropped=dropped))
    assert len(records) == 17
    assert dropped == {"a missing text": 1, "an empty answer": 1, "an empty question": 1}
    assert f"{data}: rows dropped so far: 1 for a missing" in caplog.messages[-1]


def test_a_source_without_one_usable_row_is_an_error(tmp_path):
    columns = orca(4) | {"response": [" "] * 4}
    rows = stream(write_parquet(columns, tmp_path / "data.parquet"), "demonstrations")
    with pytest.raises(DataError, match="not one usable row among the first 4: 4 for an empty"):
        next(iter(rows))


# Memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the peak")
@pytest.mark.parametrize("form", WRITERS)
def test_ten_times_the_rows_take_no_more_memory(form, tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "streams.py"
    peaks = []
    for rows in (10_000, 100_000):
        data = WRITERS[form](orca(rows), tmp_path / f"{rows}-{form}")
        done = subprocess.run(
            [sys.executable, script, "--measure", data, "demonstrations"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        read, peak, _ = map(float, done.stdout.split())
        assert read == rows
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 30  # MB
