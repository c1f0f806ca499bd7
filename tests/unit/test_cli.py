"""The command line: help for newcomers, settings passed on, and one clear line for bad input."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_helpers import dpo, ppo, rest, reward_model, rlaif, schemas, sft
from rlhf_helpers.commands import course
from rlhf_helpers.commands.main import main
from rlhf_helpers.little_world import base_model, build
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.runs import data_dir, project_root, runs_dir
from rlhf_helpers.scales import Scale
from rlhf_helpers.training import Result
from rlhf_helpers.training.interrupts import Stopped

COMMANDS = [
    [],
    ["course"],
    ["data"],
    ["train"],
    ["train", "sft"],
    ["train", "reward"],
    ["train", "ppo"],
    ["train", "rloo"],
    ["train", "grpo"],
    ["train", "dpo"],
    ["train", "rest"],
    ["train", "rlaif"],
    ["evaluate"],
    ["doctor"],
]
GOOD = {
    "sft": {"input_text": "a post [summary]: ", "output_text": "short"},
    "reward": {
        "input_text": "a post [summary]: ",
        "candidate_0": "x",
        "candidate_1": "y",
        "choice": 0,
    },
    "ppo": {"input_text": "a post [summary]: "},
    "rloo": {"input_text": "a post [summary]: "},
    "grpo": {"input_text": "a post [summary]: "},
    "dpo": {
        "input_text": "a post [summary]: ",
        "candidate_0": "x",
        "candidate_1": "y",
        "choice": 0,
    },
    "rest": {"input_text": "a post [summary]: "},
    "rlaif": {"input_text": "a post [summary]: "},
}
STAGES = pytest.mark.parametrize("stage", GOOD)
MODULES = {
    "sft": sft,
    "reward": reward_model,
    "ppo": ppo,  # of rloo and grpo too
    "dpo": dpo,
    "rest": rest,
    "rlaif": rlaif,
}


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def no_models(monkeypatch):
    """Whoever loads a model or a tokenizer fails the test."""

    def fail(*arguments, **keywords):
        pytest.fail("loaded before the data was checked")

    for module in (sft, reward_model.run, ppo.run, dpo, rest, rlaif):
        monkeypatch.setattr(module, "load_policy", fail)
        monkeypatch.setattr(module, "load_tokenizer", fail)
    monkeypatch.setattr(RewardModel, "from_pretrained", fail)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", fail)


def helped(command, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def error_of(arguments, capsys) -> str:
    """The one line on stderr of a command that ends with exit status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# Help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_says_what_every_option_means(command, capsys, monkeypatch):
    text = helped(command, capsys, monkeypatch)
    assert text.startswith("usage: python -m rlhf_helpers")
    options = re.split(r"\n  (?=-)", text.partition("\noptions:")[2])[1:]
    assert options
    for option in options:
        option = re.sub(r"\s+", " ", option).strip()
        flag, meaning = re.fullmatch(
            r"(?:-h, )?--([\w-]+)(?: [A-Z_]+| \{[^}]*\})?(.*)", option
        ).groups()
        said = meaning.partition("(default")[0].strip()
        assert said and said != flag.replace("-", " "), option
        assert meaning.count("default") <= 1, option


@pytest.mark.parametrize("command", [[], ["train"]], ids=" ".join)
def test_help_lists_the_commands_with_what_they_do(command, capsys, monkeypatch):
    text = helped(command, capsys, monkeypatch)
    for name in GOOD if command else ("course", "data", "train", "evaluate"):
        assert re.search(rf"^    {name} +\S+ \S+ \S+", text, re.MULTILINE), name


def test_help_answers_at_once():
    program = (
        "import sys\nfrom rlhf_helpers.commands.main import main\n"
        "try: main(['train', 'ppo', '--help'])\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--kl-coef" in done.stdout


def test_the_module_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_helpers", "train", "ppo", "--batch-size", "50"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: batch_size 50 must be a multiple of mini_batch_size 32")


# Settings


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """What each stage's `train` was called with, instead of training."""
    calls = []

    def record(config, resume=False):
        calls.append((config, resume))
        return Result(tmp_path / "here", {"loss": 0.5, "seconds": 12.0}, [])

    for module in MODULES.values():
        monkeypatch.setattr(module, "train", record)
    return calls


@STAGES
@pytest.mark.parametrize("scale", ["smoke", "tiny"])
def test_without_options_a_stage_gets_the_settings_of_its_scale(trained, stage, scale):
    assert main(["train", stage, "--scale", scale]) == 0
    assert trained == [(Scale(scale).config(stage), False)]


@STAGES
def test_options_change_settings_and_nothing_else(trained, stage, tmp_path):
    options = {
        "model": "an/opt",
        "data": str(tmp_path / "a.jsonl"),
        "output_dir": tmp_path / "out",
        "learning_rate": 0.25,
        "instruction": "Be brief.",
        "save_steps": 7,
    }
    options |= {
        "sft": {"bits": 4, "lora_rank": 2},
        "reward": {"pairs": 9},
        "ppo": {"kl_coef": 0.0},
        "rloo": {"cliprange_high": 0.28},
        "grpo": {"advantages": "dr_grpo"},
        "dpo": {"beta": 0.5},
        "rest": {"grow_steps": 3},
        "rlaif": {"labels": 9},
    }[stage]
    arguments = [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    assert main(["train", stage, "--seed", "3", "--resume", *arguments]) == 0
    assert trained == [(Scale("tiny", seed=3).config(stage, **options), True)]
    (config, _), expected = trained[0], vars(Scale("tiny", seed=3).config(stage, **options))
    for name, value in vars(config).items():
        assert type(value) is type(expected[name]), name


def test_a_stage_prints_its_numbers_and_where_they_are(trained, tmp_path, capsys):
    main(["train", "sft"])
    text = capsys.readouterr().out
    assert re.search(r"loss +0\.5\n", text) and re.search(r"seconds +12\n", text)
    assert str(tmp_path / "here") in text


def test_data_writes_the_grammar_s_files(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "GRAMMAR_FILES", {"prompts": (build.prompts, {"test": 3})})
    assert main(["data", "--output-dir", str(tmp_path / "new")]) == 0
    shipped = (data_dir() / "summarize" / "prompts_test.jsonl").read_bytes().splitlines()
    assert (tmp_path / "new" / "prompts_test.jsonl").read_bytes().splitlines() == shipped[:3]


def test_data_writes_what_is_sampled_or_pretrained_when_asked(tmp_path, monkeypatch, capsys):
    calls = []
    for module, name in ((build, "write_sampled_files"), (base_model, "pretrain")):
        monkeypatch.setattr(module, name, lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(build, "write_grammar_files", None)
    assert main(["data", "--output-dir", str(tmp_path), "--sampled", "a/model"]) == 0
    assert main(["data", "--output-dir", str(tmp_path), "--base-model"]) == 0
    assert main(["data", "--base-model"]) == 0
    assert calls == [
        (tmp_path, Path("a/model")),
        (tmp_path, runs_dir() / "pretraining"),
        (data_dir() / "base_model", runs_dir() / "pretraining"),
    ]


def test_the_doctor_finds_nothing_wrong_here(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", check] for check in ("packages", "data", "runs", "device")
    ]
    assert not runs_dir().exists()


# The lessons need no extra but `course` and `cloud`.
WANTED = ["torch>=99", "no-such-package>=1; extra == 'cloud'", "neither>=1; extra == 'dev'"]


@pytest.mark.parametrize(
    ("place", "instead", "said"),
    [
        ("importlib.metadata.requires", lambda _: WANTED, "pip"),
        ("rlhf_helpers.runs.data_dir", lambda: Path("/nowhere"), "git checkout"),
        ("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20), "set RLHF_RUNS"),
        ("os.access", lambda *_: False, "set RLHF_RUNS"),
    ],
)
def test_the_doctor_says_what_mends_it(place, instead, said, capsys, monkeypatch):
    monkeypatch.setattr(place, instead)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (wrong,) = [i for i, line in enumerate(lines) if line.startswith("MISSING")]
    assert "remedy: " in lines[wrong + 1] and said in lines[wrong + 1]
    if "requires" in place:
        assert re.search(r"torch>=99 \(found: 2\S+\), no-such-package>=1$", lines[wrong])


def test_lab_opens_the_notebooks_of_the_clone(monkeypatch):
    calls = []
    done = SimpleNamespace(returncode=3)
    monkeypatch.setattr("subprocess.run", lambda command: calls.append(command) or done)
    assert main(["lab"]) == 3
    [(python, *module, root, url)] = calls
    assert [python, *module] == [sys.executable, "-m", "jupyterlab"]
    assert root == f"--ServerApp.root_dir={project_root()}"
    assert url.endswith("=/lab/tree/notebooks")


@pytest.mark.parametrize("status", [0, 1])
def test_course_passes_its_settings_and_its_status_on(monkeypatch, status):
    calls = []
    monkeypatch.setattr(course, "run_course", lambda *given: calls.append(given) or status)
    assert main(["course"]) == status
    chosen = ["--scale", "smoke", "--seed", "2", "--in-place", "--jobs", "3", "a.ipynb"]
    assert main(["course", *chosen]) == status
    assert calls == [("tiny", 0, None, False, None), ("smoke", 2, [Path("a.ipynb")], True, 3)]


# Errors and signals


def fails_with(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(sft, "train", fail)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("beta is -1"), 2, "error: beta is -1"),
        (FloatingPointError("it diverged"), 1, "error: it diverged"),
        (KeyboardInterrupt(), 130, "stopped; the same command with --resume continues"),
        (Stopped(15), 143, "stopped; the same command with --resume continues"),
        (OSError(28, "No space left on device", "a/file"), 1, "error: a/file: No space left on"),
        (OSError(30, "Read-only file system", "a"), 1, "error: a: Read-only file system. Choose"),
        (
            NotADirectoryError(20, "Not a directory", "a/b"),
            1,
            "error: a/b: Not a directory. Choose",
        ),
        (FileExistsError(17, "File exists", "a/b"), 1, "error: a/b: File exists. Choose another"),
        (RuntimeError("PytorchStreamWriter failed"), 1, "error: a file could not be written"),
        (MemoryError(), 1, "error: out of memory. Lower batch_size"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "error: out of memory. Lower batch_size"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_user_can_mend_is_one_line(error, status, said, monkeypatch, capfd):
    fails_with(error, monkeypatch)
    output = os.dup(1)  # a broken pipe closes it
    try:
        assert main(["train", "sft", "--scale", "smoke"]) == status
    finally:
        os.dup2(output, 1)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == bool(said) and "".join(lines).startswith(said)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback(place, monkeypatch):
    fails_with(ValueError("a reason"), monkeypatch)
    arguments = ["train", "sft"]
    arguments.insert(place, "--debug")
    with pytest.raises(ValueError, match="a reason"):
        main(arguments)


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    fails_with(KeyError("unexpected"), monkeypatch)
    with pytest.raises(KeyError, match="unexpected"):
        main(["train", "sft"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(name, status, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "rlhf_helpers", "train", "sft", "--scale", "smoke"]
    command += ["--save-steps", "1000", "--epochs", "1", "--output-dir", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        while "loss=" not in run.stderr.read(1) + run.stderr.readline():
            assert run.poll() is None
        run.send_signal(getattr(signal, name))
        last = run.stderr.read().splitlines()[-1]
    assert (run.returncode, last) == (status, "stopped; the same command with --resume continues")
    (checkpoint,) = (out / "checkpoints").glob("checkpoint-*")
    assert (checkpoint / "complete.json").exists()
    assert not (out / "metrics.json").exists()


# Bad input

BAD_LINES = {
    "not JSON": (b"hello", "not JSON"),
    "cut off": (b'{"input_text": "a post', "not JSON"),
    "a web page": (b"<!DOCTYPE html>\n<html></html>", "a web page (HTML) saved by mistake"),
    "not UTF-8": (b'{"input_text": "caf\xe9"}', "not UTF-8 (byte 20 of the line)"),
    "no object": (b'["a post"]', "is not a JSON object"),
    "no field": (b'{"text": "a post"}', "the field `input_text` is missing"),
    "an empty field": (b'{"input_text": " "}', "`input_text` is empty"),
    "a wrong type": (b'{"input_text": 7}', "`input_text` is 7. Write a text"),
}
BAD_PAIRS = {
    "choice 2": ({"choice": 2}, "`choice` is 2. Write 0 if candidate_0 is better"),
    "choice true": ({"choice": True}, "`choice` is true"),
    "equal candidates": ({"candidate_1": " x"}, "`candidate_0` and `candidate_1` are equal"),
}


def refused(stage: str, data: Path, capsys) -> str:
    """The error of training on bad data, which leaves nothing behind."""
    out = runs_dir().parent / "out"
    message = error_of(["train", stage, "--data", data, "--output-dir", out], capsys)
    assert not out.exists() and not runs_dir().exists()
    return message


@STAGES
@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line(stage, line, tmp_path, capsys, no_models):
    bad, reason = BAD_LINES[line]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(GOOD[stage]).encode() + b"\n\n" + bad + b"\n")
    message = refused(stage, path, capsys)
    assert message.startswith(f"{path}, line 3: ")
    assert reason in message


@pytest.mark.parametrize("pair", BAD_PAIRS)
def test_a_bad_pair(pair, tmp_path, capsys, no_models):
    changes, reason = BAD_PAIRS[pair]
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD['reward'])}\n{json.dumps(GOOD['reward'] | changes)}")
    message = refused("reward", path, capsys)
    assert message.startswith(f"{path}, line 2: ")
    assert reason in message


def test_a_demonstration_without_its_answer(tmp_path, capsys, no_models):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD["ppo"]))
    message = refused("sft", path, capsys)
    assert message.startswith(f"{path}, line 1: the field `output_text` is missing")


@STAGES
def test_an_empty_file_a_folder_and_a_missing_file(stage, tmp_path, capsys, no_models):
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("empty.jsonl", ", line 1: the file is empty"),
        ("folder", ": a folder. Name one JSONL file"),
        ("none.jsonl", ": no such file. Check the path"),
    ):
        assert refused(stage, tmp_path / name, capsys).startswith(f"{tmp_path / name}{reason}")


def test_bad_prompts_for_the_reward_model(tmp_path, capsys, no_models):
    path = tmp_path / "prompts.jsonl"
    path.write_text("{}")
    message = error_of(["train", "reward", "--prompts", path], capsys)
    assert message.startswith(f"{path}, line 1: the field `input_text` is missing.")


@pytest.mark.parametrize("option", ["--prompts", "--preferences"])
def test_bad_data_for_evaluation(option, tmp_path, capsys, no_models):
    path = tmp_path / "bad.jsonl"
    path.write_text("{}")
    message = error_of(["evaluate", option, path], capsys)
    assert message.startswith(f"{path}, line 1: the field `input_text` is missing.")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["train", "reward"], "sft"),
        (["train", "ppo"], "sft"),
        (["train", "ppo", "--model", str(Scale().base_model)], "reward"),
        (["evaluate"], "ppo"),
    ],
)
def test_a_model_that_an_earlier_stage_should_have_made(arguments, missing, capsys):
    assert main([*arguments, "--scale", "smoke"]) == 2
    *_, last = capsys.readouterr().err.splitlines()  # after the reports of what could be loaded
    folder = Scale("smoke").dir(missing)
    assert last.startswith(f"error: {folder}: no such model. Train that stage first")
    assert not runs_dir().exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["train"], "the following arguments are required: STAGE"),
        (["train", "sft", "--scale", "huge"], "invalid choice: 'huge'"),
        (["evaluate", "--scale", "huge"], "invalid choice: 'huge'"),
        (["course", "--scale", "huge"], "invalid choice: 'huge'"),
        (["train", "sft", "--task", "chess"], "invalid choice: 'chess'"),
        (["train", "dance"], "invalid choice: 'dance'"),
        (["train", "sft", "--epochs", "many"], "argument --epochs: invalid float value: 'many'"),
        (["train", "sft", "--kl-coef", "1"], "unrecognized arguments: --kl-coef 1"),
    ],
)
def test_a_wrong_command_line(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_settings_that_do_not_go_together(capsys, no_models):
    message = error_of(["train", "ppo", "--batch-size", "50"], capsys)
    assert message == (
        "batch_size 50 must be a multiple of mini_batch_size 32, and that of samples_per_prompt 4"
    )


@pytest.mark.parametrize(("name", "task"), [("huge", "summarize"), ("tiny", "chess")])
def test_an_unknown_scale_or_task(name, task):
    with pytest.raises(ValueError, match=r"unknown (scale 'huge'|task 'chess'): choose one of "):
        Scale(name, task)


@pytest.mark.parametrize("seed", ["abc", 1.5, True, -1, 2**32])
def test_a_seed_that_is_no_whole_number_from_0(seed):
    with pytest.raises(
        ValueError, match=r"seed is .*: it must be a whole number from 0 to 4294967"
    ):
        Scale("tiny", seed=seed)


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
def test_the_readme_s_lines_for_ones_own_data_and_model_run(
    kind, make_model, tokenizer, tmp_path, monkeypatch
):
    """The very lines, with a small local model in place of the hub's and scale smoke."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "own-model"
    make_model(kind).save_pretrained(model)
    tokenizer.save_pretrained(model)
    pairs = [GOOD["reward"] | {"input_text": f"post {i} [summary]: "} for i in range(32)]
    schemas.write_jsonl("preferences.jsonl", pairs)
    schemas.write_jsonl("prompts.jsonl", [{"input_text": r["input_text"]} for r in pairs])
    readme = (project_root() / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Your own data") :]
    block = section[section.index("```bash") :].split("```")[1].replace("\\\n", "")
    commands = re.findall(r"python -m rlhf_helpers (.*)", block)
    assert len(commands) == 2
    for command in commands:
        arguments = command.replace("facebook/opt-125m", str(model)).split()
        assert main([*arguments, "--scale", "smoke"]) == 0
    scorer = RewardModel.from_pretrained("my/reward")
    assert len(scorer(["post 1 [summary]: x"])) == 1
    assert AutoModelForCausalLM.from_pretrained("my/ppo").config.model_type == kind
