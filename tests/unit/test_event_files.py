"""Reading event files, as torch, TensorFlow 2 and TPU jobs write them."""

import warnings

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from rlhf_helpers.evaluation import read_tensorboard
from rlhf_helpers.schemas import DataError


@pytest.fixture(autouse=True)
def no_warning():
    """A warning is an error, but where a test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def write_scalars(folder, tag: str, values, first_step: int = 0, **options) -> None:
    with SummaryWriter(folder, **options) as writer:
        for step, value in enumerate(values, start=first_step):
            writer.add_scalar(tag, value, step, walltime=1000.0 + step)


def write_tensors(folder, summaries: list[Summary]) -> None:
    writer = EventFileWriter(str(folder), max_queue_size=len(summaries))
    for step, summary in enumerate(summaries):
        writer.add_event(Event(step=step, wall_time=2000.0 + step, summary=summary))
    writer.close()


def bare_tensor(tag: str, value) -> Summary:
    """As a TPU's host call writes it: no plugin's name, often a vector of one."""
    return Summary(value=[Summary.Value(tag=tag, tensor=make_tensor_proto(value))])


def test_a_row_a_point_with_step_time_and_value(tmp_path):
    write_scalars(tmp_path, "ppo/kl", [0.5, 0.25], first_step=3)
    table = read_tensorboard(tmp_path)
    assert list(table.columns) == ["run", "tag", "step", "wall_time", "value"]
    assert table.values.tolist() == [
        [".", "ppo/kl", 3, 1003.0, 0.5],
        [".", "ppo/kl", 4, 1004.0, 0.25],
    ]


def test_scalars_stored_as_tensors_are_scalars(tmp_path):
    write_tensors(
        tmp_path,
        [
            bare_tensor("rank_loss", np.float32(0.5)),
            bare_tensor("reward", np.array([1.5], dtype=np.float64)),
            bare_tensor("global_step", np.int64(7)),
            scalar_pb("rl_loss", 2.5),  # TensorFlow 2's tf.summary.scalar
        ],
    )
    table = read_tensorboard(tmp_path)
    assert dict(zip(table["tag"], table["value"], strict=True)) == {
        "rank_loss": 0.5,
        "reward": 1.5,
        "global_step": 7.0,
        "rl_loss": 2.5,
    }
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert table["wall_time"].tolist() == [2000.0, 2001.0, 2002.0, 2003.0]


def test_what_is_no_scalar_is_left_out(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_histogram("weights", np.arange(10.0), 0)
        writer.add_text("sample", "once upon a time", 0)
        writer.add_image("picture", np.zeros((3, 2, 2)), 0)
        writer.add_scalar("loss", 1.0, 0)
    write_tensors(tmp_path, [bare_tensor("vector", np.zeros(3)), bare_tensor("empty", np.zeros(0))])
    assert read_tensorboard(tmp_path)["tag"].tolist() == ["loss"]


@pytest.mark.parametrize("kind", ["scalar", "tensor"])
def test_no_point_of_thousands_is_dropped(tmp_path, kind):
    values = np.arange(3_000.0)  # the library keeps 500 of a tag unless told otherwise
    if kind == "scalar":
        write_scalars(tmp_path, "reward", values, max_queue=len(values))
    else:
        write_tensors(tmp_path, [bare_tensor("reward", value) for value in values])
    table = read_tensorboard(tmp_path)
    assert table["step"].tolist() == list(range(3_000))
    assert table["value"].tolist() == values.tolist()


def test_each_sub_folder_is_a_run(tmp_path):
    write_scalars(tmp_path, "kl", [0.0])
    write_scalars(tmp_path / "seed1" / "ppo", "kl", [1.0])
    write_scalars(tmp_path / "seed2", "kl", [2.0])
    table = read_tensorboard(tmp_path)
    assert dict(zip(table["run"], table["value"], strict=True)) == {
        ".": 0.0,
        "seed1/ppo": 1.0,
        "seed2": 2.0,
    }


def test_a_restarted_job_that_marks_its_sessions_counts_each_step_once(tmp_path):
    write_scalars(tmp_path, "kl", [0.0, 1.0, 2.0, 3.0], purge_step=0)  # as TensorFlow's sessions do
    (first,) = tmp_path.iterdir()
    first.rename(tmp_path / "events.out.tfevents.1000000000.earlier")
    write_scalars(tmp_path, "kl", [20.0, 30.0], first_step=2, purge_step=2)
    assert read_tensorboard(tmp_path)["value"].tolist() == [0.0, 1.0, 20.0, 30.0]


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_file_that_breaks_off_gives_what_is_readable_and_a_warning(tmp_path, lost):
    write_scalars(tmp_path / "broken", "kl", [0.0, 1.0, 2.0])
    write_scalars(tmp_path / "whole", "kl", [5.0])
    (path,) = (tmp_path / "broken").iterdir()
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.warns(UserWarning, match="bytes are unreadable") as caught:
        table = read_tensorboard(tmp_path)
    assert [str(path) in str(warning.message) for warning in caught] == [True]
    assert caught[0].filename == __file__
    assert table["value"].tolist() == [0.0, 1.0, 5.0]


def test_a_file_that_is_damaged_in_the_middle_gives_what_comes_before(tmp_path):
    write_scalars(tmp_path, "kl", [0.0, 1.0, 2.0])
    (path,) = tmp_path.iterdir()
    version, step_0, *_ = RawEventFileLoader(str(path)).Load()
    content = bytearray(path.read_bytes())
    content[len(version) + len(step_0) + 2 * 16 + 12] ^= 0xFF  # the first byte of step 1's record
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="bytes are unreadable"):
        assert read_tensorboard(tmp_path)["value"].tolist() == [0.0]


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_event_files_is_an_error_that_says_what_to_do(tmp_path, exists):
    folder = tmp_path if exists else tmp_path / "elsewhere"
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"no TensorBoard event file.*Name the folder") as caught:
        read_tensorboard(folder)
    assert str(caught.value).startswith(f"{folder}: ")


def test_event_files_without_a_scalar_are_an_error(tmp_path):
    SummaryWriter(tmp_path).close()
    with pytest.raises(DataError, match="no scalar in 1 event files"):
        read_tensorboard(tmp_path)
