"""The runner of the notebooks: order, skipping, failing, and normalising for committing."""

import base64
import copy
import io
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from rlhf_helpers.commands import notebooks
from rlhf_helpers.commands.course import run_course, run_notebooks
from rlhf_helpers.commands.normalise import normalise
from rlhf_helpers.commands.notebooks import course_notebooks, without_exercises
from rlhf_helpers.runs import is_headless, project_root, read_results

PARAMETERS = 'scale = "none"\nseed = 99'


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))


def code(source, *outputs, tags=(), count=1, **metadata):
    cell = new_code_cell(source, metadata={"tags": list(tags), **metadata})
    cell.outputs, cell.execution_count = list(outputs), count
    return cell


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def shown(**data):
    data = {key.replace("__", "/"): value for key, value in data.items()}
    return new_output("display_data", data=data, metadata={})


def outputs_of(*outputs):
    """What normalising leaves of the outputs of one cell."""
    return normalise(new_notebook(cells=[code("1", *outputs)])).cells[0].outputs


def write(path, *cells):
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


# Normalising


def test_traces_of_a_run_are_removed_and_the_original_is_left_alone():
    cell = code(
        "x",
        tags=["solution"],
        execution={"iopub.execute_input": "2030-01-01T00:00:00Z"},
        papermill={"duration": 1.5},
        jupyter={"source_hidden": True},
    )
    injected = code("seed = 7", tags=["injected-parameters"])
    notebook = new_notebook(cells=[injected, cell], metadata={"papermill": {"duration": 2}})
    before = copy.deepcopy(notebook)
    clean = normalise(notebook)
    assert [cell.source for cell in clean.cells] == ["x"]
    assert clean.cells[0].metadata == {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    assert clean.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert notebook == before
    nbformat.validate(clean)


def test_cells_are_counted_from_one_and_exercises_keep_nothing():
    result = new_output("execute_result", data={"text/plain": "4"}, execution_count=9)
    cells = [
        code("a", count=7),
        new_markdown_cell("text"),
        code("b", printed("mine"), tags=["exercise"], count=8),
        code("c", result, count=9),
        code("d", count=None),
    ]
    clean = [cell for cell in normalise(new_notebook(cells=cells)).cells if "outputs" in cell]
    assert [cell.execution_count for cell in clean] == [1, None, 2, None]
    assert clean[1].outputs == []
    assert clean[2].outputs[0].execution_count == 2


def test_streams_keep_the_last_state_of_a_line_and_no_stderr():
    pieces = [printed("step 1\rstep 2\r"), printed("warning", "stderr"), printed("step 3\ndone\n")]
    assert outputs_of(*pieces) == [printed("step 3\ndone\n")]
    assert outputs_of(printed("a\r\nb\r\n")) == [printed("a\nb\n")]
    assert outputs_of(printed("50%\r100%\r\r\n")) == [printed("100%\n")]
    assert outputs_of(printed("\n")) == []


def test_widgets_and_progress_bars_vanish_but_the_table_beside_a_bar_stays():
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "0%"}
    bar = "\n <div>\n <progress value='2' max='2'></progress>\n [2/2 00:01]\n </div>\n "
    table = "<div>kept</div><table><tr><td>0.5</td></tr></table>"
    assert outputs_of(new_output("display_data", data=widget), shown(text__html=bar)) == []
    assert outputs_of(shown(text__html=bar + table)) == [shown(text__html=table)]


def test_machine_paths_become_relative_and_images_stay(monkeypatch):
    root, home = project_root(), Path("/somebody")
    monkeypatch.setattr(Path, "home", lambda: home)
    text = f"{root}/runs {root} {root}-2 file://{home}/x {home}s 7{home}"
    relative = f"./runs . {root}-2 file://~/x {home}s 7{home}"
    image = shown(image__jpeg=f"{home}/", text__plain=text)
    assert outputs_of(printed(text), image) == [
        printed(relative),
        shown(image__jpeg=f"{home}/", text__plain=relative),
    ]


def test_figures_get_a_palette_once_and_look_the_same():
    figure = io.BytesIO()
    gradient = Image.linear_gradient("L").convert("RGBA")
    gradient.save(figure, "PNG")
    output = shown(image__png=base64.b64encode(figure.getvalue()).decode(), text__plain="<Axes>")
    once = outputs_of(output)
    small = Image.open(io.BytesIO(base64.b64decode(once[0]["data"]["image/png"])))
    assert small.mode == "P"
    assert small.convert("RGB").tobytes() == gradient.convert("RGB").tobytes()
    assert outputs_of(*once) == once


def test_a_home_at_the_root_of_the_file_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert outputs_of(printed("/etc/hosts 1/2\n")) == [printed("/etc/hosts 1/2\n")]


def test_ids_are_kept_and_missing_ones_named_after_their_place():
    notebook = new_notebook(cells=[code("a"), code("b")])
    notebook.cells[0].id = "mine"
    del notebook.cells[1]["id"]
    clean = normalise(notebook)
    assert [cell.id for cell in clean.cells] == ["mine", "cell-1"]


def test_normalising_twice_changes_nothing():
    once = normalise(new_notebook(cells=[code("a", printed("x\ry\n")), code("b", count=5)]))
    assert nbformat.writes(normalise(once)) == nbformat.writes(once)


# Choosing what is run


def test_exercises_are_taken_out_of_a_copy():
    notebook = new_notebook(cells=[code("stub", tags=["exercise"]), code("answer")])
    assert [cell.source for cell in without_exercises(notebook).cells] == ["answer"]
    assert len(notebook.cells) == 2


def test_notebooks_run_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "project_root", lambda: tmp_path)
    for name in ("L10_rest", "L2_explore_data", "L9_dpo", "scratch"):
        write(tmp_path / "notebooks" / f"{name}.ipynb")
    names = [path.stem for path in course_notebooks()]
    assert names == ["L2_explore_data", "L9_dpo", "L10_rest"]


def test_a_project_without_notebooks_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "project_root", lambda: tmp_path)
    assert run_course("tiny") == 1
    assert "No notebooks" in capsys.readouterr().err


# Running: each starts a kernel


@pytest.mark.slow
def test_a_notebook_runs_on_this_interpreter_and_is_refreshed_in_place(tmp_path, capsys):
    source = (
        "import sys\n"
        "from rlhf_helpers.runs import is_headless, record_results\n"
        "assert is_headless()\n"
        "print(sys.executable)\n"
        "print('noise', file=sys.stderr)\n"
        "record_results(scale, 'L1_small', {'seed': seed})\n"
        "scale"
    )
    cells = [
        code(PARAMETERS, tags=["parameters"], count=None),
        code("raise SystemExit('an exercise was run')", printed("old"), tags=["exercise"]),
        code(source, count=None),
        code("import matplotlib.pyplot as plt\nplt.plot([1, 2]);", count=None),
    ]
    path = write(tmp_path / "notebooks" / "L1_small.ipynb", *cells)

    assert run_course("smoke", seed=3, notebooks=[path], in_place=True) == 0

    assert not is_headless()
    executed = nbformat.read(tmp_path / "runs/smoke/notebooks/L1_small.ipynb", as_version=4)
    assert executed.cells[-2].outputs[0].text.splitlines()[0] == sys.executable
    refreshed = nbformat.read(path, as_version=4)
    assert [cell.source for cell in refreshed.cells] == [cell.source for cell in cells]
    assert [cell.id for cell in refreshed.cells] == [cell.id for cell in cells]
    assert [cell.execution_count for cell in refreshed.cells] == [1, None, 2, 3]
    assert [output.output_type for output in refreshed.cells[2].outputs] == [
        "stream",
        "execute_result",
    ]
    assert refreshed.cells[2].outputs[1].data == {"text/plain": "'smoke'"}
    assert os.environ["MPLBACKEND"] == "Agg"
    assert "image/png" in refreshed.cells[3].outputs[0].data, "a figure needs the inline backend"
    assert refreshed == normalise(refreshed)

    results = read_results("smoke")["L1_small"]
    assert results["seed"] == 3.0 and results["seconds"] > 0
    table = capsys.readouterr().out
    assert "[1/1] L1_small" in table and "results.json" in table and "--logdir" in table


@pytest.mark.slow
def test_a_failed_notebook_is_named_with_its_cell_and_stops_no_other(tmp_path, capsys):
    parameters = code(PARAMETERS, tags=["parameters"])
    sources = {"L1_broken": "steps = 0\n60 / steps", "L2_dies": "import os; os._exit(1)"}
    sources["L3_fine"] = "print(scale)"
    folder = tmp_path / "notebooks"
    paths = [write(folder / f"{n}.ipynb", parameters, code(s)) for n, s in sources.items()]
    before = paths[0].read_bytes()

    assert run_course("smoke", notebooks=paths, in_place=True) == 1

    captured = capsys.readouterr()
    assert "L1_broken failed in cell [3]" in captured.err
    assert "60 / steps" in captured.err and "ZeroDivisionError: division by zero" in captured.err
    assert "L2_dies failed" in captured.err and "os._exit(1)" in captured.err
    assert "L1_broken: failed after 0:" in captured.out
    assert (tmp_path / "runs/smoke/notebooks/L1_broken.ipynb").exists()
    assert paths[0].read_bytes() == before
    assert list(read_results("smoke")) == ["L3_fine"]


@pytest.mark.slow
def test_notebooks_run_side_by_side_with_one_thread_each_once_what_they_read_is_written(
    tmp_path, capsys
):
    wait = """
import os, time
from rlhf_helpers.runs import stage_dir, write_json
assert os.environ["OMP_NUM_THREADS"] == "1"
def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.1)
"""
    sources = {
        "L3_pipeline": "open('L3', 'x'); wait_for('L6')",
        "L6_sft": "open('L6', 'x'); wait_for('L3'); time.sleep(1); open('sft', 'x')",
        "L7_reward": "open('sft'); write_json(stage_dir(scale, 'reward', live=True) / "
        "'metrics.json', {}); wait_for('ppo'); time.sleep(5)",  # so that L8 ends before it
        "L8_ppo": "open('ppo', 'x')",
        "L99_unknown": "open('ppo')",
    }
    parameters = code(PARAMETERS, tags=["parameters"])
    paths = [write(tmp_path / f"{n}.ipynb", parameters, code(wait + s)) for n, s in sources.items()]
    assert run_notebooks(paths, "smoke", jobs=2) == {}
    printed = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in printed] == [f"[{i}/5]" for i in range(1, 6)]
    assert "L8_ppo" in printed[2] and "L7_reward" in printed[3]


def test_at_least_one_notebook_runs_at_a_time():
    with pytest.raises(ValueError, match="jobs is 0"):
        run_notebooks([Path("L1_any.ipynb")], "smoke", jobs=0)


def test_a_notebook_that_grew_too_large_is_not_written(tmp_path, capsys):
    cells = [code(PARAMETERS, tags=["parameters"]), code("print('x' * 600_000)")]
    path = write(tmp_path / "notebooks" / "L1_large.ipynb", *cells)
    before = path.read_bytes()
    assert run_course("smoke", notebooks=[path], in_place=True) == 1
    assert "L1_large would be 600," in capsys.readouterr().err
    assert path.read_bytes() == before
