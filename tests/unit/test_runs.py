"""Paths of runs, atomic JSON, and the results that notebooks record."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rlhf_helpers import runs
from rlhf_helpers.runs import (
    data_dir,
    project_root,
    read_results,
    record_results,
    runs_dir,
    stage_dir,
    write_json,
)

CLONE = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))


def test_a_clone_is_the_root_from_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_RUNS")
    monkeypatch.chdir(tmp_path)
    assert project_root() == CLONE
    assert data_dir() == CLONE / "data"
    assert runs_dir() == CLONE / "runs"


def test_without_a_clone_runs_go_to_the_current_directory(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "rlhf_helpers"
    monkeypatch.setattr(runs, "PACKAGE", package)
    monkeypatch.delenv("RLHF_RUNS")
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where a notebook runs
    assert project_root() == tmp_path
    assert data_dir() == package / "data"
    assert runs_dir() == tmp_path / "runs"


def test_the_environment_variable_moves_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_RUNS", "elsewhere")
    assert runs_dir() == tmp_path / "elsewhere"


def test_stage_dir_spells_out_scale_task_and_seed_and_creates_nothing():
    base = runs_dir()
    assert stage_dir("tiny", "sft") == base / "tiny/summarize/seed0/sft"
    live = stage_dir("small", "ppo", task="autocomplete", seed=3, live=True)
    assert live == base / "small/autocomplete/seed3/live/ppo"
    assert not base.exists()


def test_write_json_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"a": 1})
    write_json(path, {"β": [1.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"β": [1.5, None]}
    assert list(path.parent.iterdir()) == [path]


def test_write_json_keeps_the_old_file_where_the_new_cannot_be_written(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_write_json_writes_nothing_that_is_not_json(tmp_path, value):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match=r"metrics\.json: JSON has no NaN"):
        write_json(path, {"a": {"b": [value]}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_results_are_merged_under_the_name_of_the_notebook():
    assert read_results("tiny") == {}
    record_results("tiny", "L8_local_ppo", {"kl": np.float32(1.5), "steps": 60})
    record_results("tiny", "L8_local_ppo", {"kl": 2.5, "seconds": 9.0})
    record_results("tiny", "L6_local_sft", {"gold_sampled": -1.0})
    assert read_results("tiny") == {
        "L8_local_ppo": {"kl": 2.5, "steps": 60.0, "seconds": 9.0},
        "L6_local_sft": {"gold_sampled": -1.0},
    }
    assert read_results("small") == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, "1.0", None, True, [1.0], {"mean": 1.0}])
def test_a_result_that_is_no_finite_number_is_refused_and_nothing_is_written(value):
    with pytest.raises(ValueError, match=r"L6_local_sft: result 'gold' must be a finite number"):
        record_results("tiny", "L6_local_sft", {"kl": 1.0, "gold": value})
    assert read_results("tiny") == {}


def test_the_name_of_a_result_must_be_text():
    with pytest.raises(ValueError, match="must be text"):
        record_results("tiny", "L6_local_sft", {1: 1.0})


def test_writers_at_the_same_time_lose_no_result(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))
    names = [f"L{lesson}" for lesson in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: record_results("tiny", name, {"seconds": 1}), names))
    assert read_results("tiny") == {name: {"seconds": 1.0} for name in names}
