"""The chain SFT -> reward model -> PPO -> evaluation at scale `smoke`, and resuming its stages."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOTrainer, SFTTrainer

from rlhf_helpers import rest, rlaif, scales, stages, training
from rlhf_helpers.commands.main import main
from rlhf_helpers.configs.settings import as_json
from rlhf_helpers.models import load_classifier, load_policy, load_tokenizer
from rlhf_helpers.models.devices import matmul_precision
from rlhf_helpers.ppo import PPOTrainer
from rlhf_helpers.reward_model.kwise import KwiseTrainer
from rlhf_helpers.runs import write_json
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import read_demonstrations, read_preferences
from rlhf_helpers.training import checkpoints as folders
from rlhf_helpers.training.checkpoints import claim, newest_checkpoint, release, start_stage, status

pytestmark = pytest.mark.slow  # each test needs trained stages

SMOKE = Scale("smoke")
STAGES = pytest.mark.parametrize("stage", stages.STAGES)
CLASSES = {"sft": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
TAGS = {
    "sft": {"train/loss", "train/learning_rate", "train/grad_norm"},
    "reward": {"train/accuracy", "train/margin", "train/train_loss"},
    "ppo": {f"ppo/{name}" for name in ("reward_mean", "kl", "policy_loss", "eos_rate")},
    "dpo": {"train/loss", "train/rewards/margins", "train/rewards/accuracies"},
    "rest": {"rest/score", "rest/kept", "rest/loss"},
}
TAGS |= dict.fromkeys(("rlaif", "rloo", "grpo"), TAGS["ppo"])


def train(stage: str, resume: bool = False, **changes):
    """The stage's function, without the command line."""
    return stages.train_stage(stage, SMOKE.config(stage, **changes), resume)


def report(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def without_seconds(numbers: dict) -> dict:
    return {name: value for name, value in numbers.items() if "seconds" not in name}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """An empty working directory; runs go to a folder of their own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("RLHF_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("RLHF_MATMUL_PRECISION", "highest")  # the same in every test
        # The head that is trained by TRL, with its checkpoints; the other is in test_reward_model.
        patch.setitem(scales.SMOKE["reward"], "head", "last_token")
        matmul_precision.cache_clear()
        yield home
    matmul_precision.cache_clear()


@pytest.fixture(scope="module")
def chain(home) -> dict[str, int]:
    """Exit status of every stage, run in order by the command line."""
    torch.set_num_threads(1)
    status = {stage: main(["train", stage, "--scale", "smoke"]) for stage in stages.STAGES}
    arguments = ["evaluate", "--scale", "smoke", "--output-dir", str(home / "evaluation")]
    return status | {"evaluate": main(arguments)}


# The chain


def test_every_stage_succeeds_and_writes_only_where_it_should(chain, home):
    assert chain == dict.fromkeys([*stages.STAGES, "evaluate"], 0)
    assert sorted(path.name for path in home.rglob("*")) == [
        "evaluation",
        "evaluation.json",
        "samples.html",
    ]


def test_only_what_is_missing_is_trained(chain, monkeypatch):
    trained = []
    monkeypatch.setattr(stages, "train_stage", lambda stage, config: trained.append(config))
    stages.train_missing(SMOKE, "sft", "reward", "ppo")
    assert trained == []
    other = Scale("smoke", seed=1)
    stages.train_missing(other, "sft", "reward")
    assert trained == [other.config("sft"), other.config("reward")]


def test_a_result_of_another_version_of_the_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    data, config = tmp_path / "pairs.jsonl", SMOKE.config("sft", output_dir=tmp_path / "sft")
    data.write_text("one world\n")
    config = dataclasses.replace(config, data=data)
    run = {"id": "1", "began_with": folders.began_with(config)}
    write_json(config.output_dir / "run.json", run)
    write_json(config.output_dir / "metrics.json", {"run": "1", "config": as_json(config)})
    folders.check_data(config.output_dir)
    data.write_text("another\n")
    with pytest.raises(ValueError, match=r"sft was trained on another version of .*pairs\.jsonl"):
        folders.check_data(config.output_dir)
    data.unlink()
    folders.check_data(config.output_dir)


@STAGES
def test_a_stage_leaves_a_model_that_transformers_loads(chain, stage):
    folder = SMOKE.dir(stage)
    model, problems = CLASSES.get(stage, AutoModelForCausalLM).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(problems.values()), problems
    assert model.config.num_labels == 1 or stage != "reward"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = model(**tokenizer("a post", return_tensors="pt")).logits
    assert scores.isfinite().all()
    assert (tokenizer("a post")["input_ids"][-1] == tokenizer.eos_token_id) == (stage == "reward")


@STAGES
def test_a_stage_leaves_its_numbers_and_settings(chain, stage):
    found = report(SMOKE.dir(stage))
    assert set(found) == {"metrics", "config", "history", "run"}
    expected = dataclasses.asdict(SMOKE.config(stage))
    assert found["config"] == json.loads(json.dumps(expected, default=str))
    assert all(isinstance(value, int | float) for value in found["metrics"].values())
    assert found["metrics"]["seconds"] > 0
    assert found["history"] and all(isinstance(row, dict) for row in found["history"])


@STAGES
def test_a_stage_leaves_logs_for_tensorboard(chain, stage):
    events = EventAccumulator(str(SMOKE.dir(stage) / "logs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS[stage]
    if stage == "ppo":
        history = report(SMOKE.dir(stage))["history"]
        for name in history[0]:
            points = events.Scalars(f"ppo/{name}")
            assert [point.step for point in points] == [0, 1]
            expected = [row[name] for row in history]
            assert [point.value for point in points] == pytest.approx(expected, rel=1e-5)


def test_the_reward_model_reports_how_often_it_was_right_in_training(chain):
    assert 0 < report(SMOKE.dir("reward"))["metrics"]["accuracy"] <= 1


def test_the_evaluation_reports_the_policy_and_the_reward_model(chain, home):
    found = json.loads((home / "evaluation" / "evaluation.json").read_text())
    assert set(found) == {"sampled", "sampled_0.4", "greedy", "reward_model"}
    common = {"gold", "gold_se", "reward", "kl", "length", "eos_rate", "point", "covered", "wrong"}
    reference = {"reference_reward", "reference_gold", "reference_length"}
    texts = {"prompts", "words", "repetition", "distinct_1", "distinct_2"}
    wins = {
        f"{name}{end}" for name in ("win_rate", "win_rate_gold") for end in ("", "_low", "_high")
    }
    for name in ("sampled", "sampled_0.4", "greedy"):
        assert set(found[name]) == common | texts | wins | reference
        assert found[name]["prompts"] == 16
    names = {
        f"accuracy_{name}{end}"
        for name in ("gold", "noisy", "clear")
        for end in ("", "_low", "_high")
    }
    assert set(found["reward_model"]) == {"pairs", *names}


def test_rest_imitates_the_better_half_and_then_the_best_quarter(chain):
    folder, model = SMOKE.dir("rest"), SMOKE.dir("sft")
    rows = report(folder)["history"]
    steps = [folder / f"grow_{g}_best_{share}" for g in (1, 2) for share in (0.5, 0.25)]
    for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
        kept, config = read_demonstrations(step / "kept.jsonl"), report(step)["config"]
        assert len(kept) == row["kept"] * 32 and 0 < row["kept"] <= (0.5, 0.25)[i % 2]
        assert config["model"] == str(model)
        assert config["learning_rate"] == pytest.approx(3e-4 / 1.5**i)
        model = step
    last, result = (load_file(f / "model.safetensors") for f in (model, folder))
    assert all(torch.equal(last[name], result[name]) for name in result)


def test_rest_needs_prompts_of_its_own_for_every_grow_step(chain, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"input_text": "a post"}\n' * 15)
    with pytest.raises(ValueError, match="15 prompts, but 2 Grow steps of 8 ask for 16"):
        train("rest", data=path)


def test_rlaif_hears_the_ai_alone(chain):
    labels = SMOKE.dir("rlaif") / "labels.jsonl"
    assert {pair["annotator"] for pair in read_preferences(labels)} == {"ai"}
    judge = SMOKE.dir("rlaif_reward")
    assert report(judge)["config"]["data"] == str(labels)
    assert report(SMOKE.dir("rlaif"))["config"]["reward_model"] == str(judge)


@STAGES
def test_running_a_stage_again_as_a_function_gives_the_same_numbers(chain, stage, tmp_path):
    folder = shutil.copytree(SMOKE.dir(stage), tmp_path / "again")
    (folder / "metrics.json").unlink()
    result = train(stage, output_dir=folder)
    assert result.output_dir == folder
    expected = report(SMOKE.dir(stage))["metrics"]
    assert without_seconds(result.metrics) == pytest.approx(without_seconds(expected), rel=1e-6)
    assert report(folder)["metrics"] == result.metrics
    assert report(folder)["history"] == result.history


# Divergence


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_run_that_diverges_stops_before_anything_is_saved_over(chain, stage, tmp_path, capsys):
    folder = shutil.copytree(SMOKE.dir(stage), tmp_path / "earlier")
    model = (folder / "model.safetensors").read_bytes()
    options = ["--learning-rate", "1e30", "--warmup-steps", "0", "--output-dir", str(folder)]
    assert main(["train", stage, "--scale", "smoke", *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: training diverged: .* at step \d+ of \d+\. Lower learning_rate", error)
    assert "now 1e+30" in error
    assert (folder / "model.safetensors").read_bytes() == model
    assert not [name for name in checkpoints(folder) if not_finite(folder / "checkpoints" / name)]


def not_finite(folder: Path) -> bool:
    return any(not w.isfinite().all() for w in load_file(folder / "model.safetensors").values())


def test_a_model_that_is_not_finite_is_saved_by_no_stage(chain, tmp_path):
    config = SMOKE.config("ppo", output_dir=tmp_path / "out")
    model, tokenizer = load_policy(SMOKE.dir("sft")), load_tokenizer(SMOKE.dir("sft"))
    with pytest.raises(FloatingPointError, match="kl is not a finite number"):
        training.save_stage(config, model, tokenizer, {"kl": math.nan}, [])
    model.get_output_embeddings().weight.data[0, 0] = math.inf
    with pytest.raises(FloatingPointError, match=r"embed_tokens\.weight is not a finite number"):
        training.save_stage(config, model, tokenizer, {"kl": 0.0}, [])
    assert not (tmp_path / "out").exists()


def test_what_is_no_number_in_the_history_is_null(chain, tmp_path):
    config = SMOKE.config("sft", output_dir=tmp_path)
    model, tokenizer = load_policy(SMOKE.dir("sft")), load_tokenizer(SMOKE.dir("sft"))
    training.save_stage(config, model, tokenizer, {"loss": 1.0}, [{"step": 1, "ratio": math.nan}])
    assert report(tmp_path)["history"] == [{"step": 1, "ratio": None}]


@pytest.mark.parametrize(("stage", "load"), [("sft", load_policy), ("reward", load_classifier)])
def test_a_model_that_is_not_finite_is_refused_by_name(chain, stage, load, tmp_path):
    folder = shutil.copytree(SMOKE.dir(stage), tmp_path / "bad")
    weights = load_file(folder / "model.safetensors")
    name = "score.weight" if stage == "reward" else "model.decoder.layers.0.fc1.weight"
    weights[name][0, 0] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError) as error:
        load(folder)
    assert str(error.value).startswith(f"{folder}: the weight {name} holds NaN or infinite numbers")


# Resuming

STEPS = {
    "sft": (SFTTrainer, "training_step"),
    "reward": (KwiseTrainer, "training_step"),
    "ppo": (PPOTrainer, "rollout"),
    "dpo": (DPOTrainer, "training_step"),
    "rest": (rest, "grow"),
    "rlaif": (PPOTrainer, "rollout"),
    "rloo": (PPOTrainer, "rollout"),
    "grpo": (PPOTrainer, "rollout"),
}
# ours: a step is a rollout or a Grow step, and saved each time
LOOPS = ("ppo", "rest", "rlaif", "rloo", "grpo")


def train_and_stop(stage: str, steps: int, **changes) -> None:
    """Run a stage until someone stops it after so many steps."""
    owner, name = STEPS[stage]
    step, done = getattr(owner, name), []

    def stop_after(self, *arguments, **keywords):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stop_after)
        with pytest.raises(KeyboardInterrupt):
            train(stage, **changes)


@STAGES
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(chain, stage, tmp_path):
    train_and_stop(stage, steps=1 if stage in LOOPS else 3, output_dir=tmp_path)
    assert len(checkpoints(tmp_path)) == 1
    assert not (tmp_path / "metrics.json").exists()  # it says 'complete'

    resumed = train(stage, resume=True, output_dir=tmp_path)
    expected, found = (
        load_file(folder / "model.safetensors") for folder in (SMOKE.dir(stage), tmp_path)
    )
    exactly = {"atol": 0 if stage in LOOPS else 1e-6, "rtol": 0}
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **exactly)
    history = report(SMOKE.dir(stage))["history"]
    assert len(resumed.history) == len(history)
    for row, whole in zip(resumed.history, history, strict=True):
        close = whole if stage in LOOPS else pytest.approx(whole, rel=1e-3, abs=1e-4)
        assert without_seconds(row) == without_seconds(whole) or row == close
    assert points(tmp_path) == points(SMOKE.dir(stage))
    if stage in LOOPS:
        metrics = without_seconds(report(SMOKE.dir(stage))["metrics"])
        assert without_seconds(resumed.metrics) == metrics
    if stage == "reward":
        before, after = (
            CLASSES[stage].from_pretrained(folder).config for folder in (SMOKE.dir(stage), tmp_path)
        )
        assert after.reward_mean == pytest.approx(before.reward_mean, abs=1e-5)
        assert after.reward_std == pytest.approx(before.reward_std, abs=1e-5)


def points(folder: Path) -> dict[str, list[int]]:
    """The steps of every curve that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if "total_flos" not in name]
    return {name: [point.step for point in events.Scalars(name)] for name in names}


@STAGES
def test_a_new_start_forgets_the_checkpoints_but_keeps_the_model(chain, stage, tmp_path, caplog):
    folder = shutil.copytree(SMOKE.dir(stage), tmp_path / "again")
    model = (folder / "model.safetensors").read_bytes()
    assert len(checkpoints(folder)) == 1
    train_and_stop(stage, steps=0, output_dir=folder, seed=1)
    assert checkpoints(folder) == []
    assert status(folder) == "unfinished"
    assert (folder / "model.safetensors").read_bytes() == model
    assert load_model(stage, folder) is not None  # that of the complete run, until the next is

    with pytest.raises(ValueError, match="seed was 1, now 0: resume with the same, or start anew"):
        start_stage(SMOKE.config(stage, output_dir=folder), resume=True)
    assert start_stage(SMOKE.config(stage, output_dir=folder, seed=1), resume=True) is None
    assert f"{folder}: no whole checkpoint yet, so the run starts anew" in caplog.messages
    release(folder)


def load_model(stage: str, folder: Path):
    return (load_classifier if stage == "reward" else load_policy)(folder)


@STAGES
def test_a_complete_run_that_is_resumed_says_so_and_changes_nothing(chain, stage, caplog):
    folder = SMOKE.dir(stage)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = train(stage, resume=True)
    assert caplog.messages == [f"{folder}: this run is complete; nothing is left to do"]
    assert result.metrics == report(folder)["metrics"]
    assert result.history == report(folder)["history"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(ValueError, match=r"learning_rate was \S+, now 0.25: resume with the same"):
        train(stage, resume=True, learning_rate=0.25)


@pytest.fixture
def stopped(chain, tmp_path) -> Path:
    """The folder of an SFT run that was stopped after its checkpoint of two steps."""
    train_and_stop("sft", steps=3, output_dir=tmp_path / "stopped")
    assert checkpoints(tmp_path / "stopped") == ["checkpoint-2"]
    return tmp_path / "stopped"


def test_a_checkpoint_cut_short_is_removed_and_the_one_before_it_resumed(stopped):
    """As a kill leaves it, while the checkpoint of step 4 is written."""
    folder = stopped / "checkpoints"
    wreck = shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-4")
    (wreck / "complete.json").unlink()
    (wreck / "optimizer.pt").write_bytes(b"half")
    checkpoint = start_stage(SMOKE.config("sft", output_dir=stopped), resume=True)
    assert checkpoint == folder / "checkpoint-2"
    assert checkpoints(stopped) == ["checkpoint-2"]
    release(stopped)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_one_sentence(stopped, name, damage, capsys):
    path = stopped / "checkpoints" / "checkpoint-2" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-7])
    if damage == "gone":
        path.unlink()
    arguments = ["--scale", "smoke", "--output-dir", str(stopped), "--resume"]
    assert main(["train", "sft", *arguments]) == 2
    what = "missing" if damage == "gone" else "damaged"
    error = f"error: {path}: {what}. Remove the folder {path.parent} to resume from an earlier"
    assert capsys.readouterr().err.splitlines()[-1].startswith(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.25}, r"learning_rate was 0\.0005, now 0\.25"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"model": "other"}, "content of model was .*"),
        ({"data": "other.jsonl"}, "content of data was .*"),
    ],
    ids=str,
)
def test_a_resumed_run_must_begin_as_before(stopped, changes, message, tmp_path):
    if "model" in changes:
        changes = {"model": SMOKE.dir("sft")}
    if "data" in changes:
        changes = {"data": tmp_path / "other.jsonl"}
        lines = SMOKE.data("demonstrations", "train").read_text().splitlines()
        changes["data"].write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=message):
        train("sft", resume=True, output_dir=stopped, **changes)
    assert checkpoints(stopped) == ["checkpoint-2"]


def test_a_moved_folder_and_what_changes_no_number_may_differ(stopped, tmp_path):
    moved = stopped.rename(tmp_path / "moved")
    config = SMOKE.config("sft", output_dir=moved, save_steps=3)
    assert start_stage(config, resume=True) == moved / "checkpoints" / "checkpoint-2"
    release(moved)


def test_the_model_of_an_unfinished_run_is_refused(stopped):
    with pytest.raises(FileNotFoundError, match="this run is not complete"):
        load_policy(stopped)


def test_a_second_run_in_a_folder_is_refused_and_names_the_first(chain, tmp_path, capsys):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from rlhf_helpers.training.checkpoints import claim\n"
        "claim(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        arguments = ["train", "sft", "--scale", "smoke", "--output-dir", str(folder)]
        assert main(arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {folder}: process {first.pid} on ")
        assert "is training here. Wait for it, or choose another --output-dir." in error
        first.kill()
    claim(folder)  # a dead process holds nothing
    release(folder)


def test_rlaif_takes_no_checkpoint_of_an_earlier_run(chain, tmp_path):
    """A rerun that is stopped before its PPO begins leaves nothing of the first run to resume."""
    folder = shutil.copytree(SMOKE.dir("rlaif"), tmp_path / "again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlaif, "label_file", stop)
        with pytest.raises(KeyboardInterrupt):
            train("rlaif", output_dir=folder, seed=1)
    assert newest_checkpoint(folder) is None
    assert status(folder) == "unfinished"


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stage", "option"),
    [
        ("sft", "model"),
        ("reward", "model"),
        ("ppo", "model"),
        ("ppo", "reward_model"),
        ("dpo", "model"),
        ("rest", "model"),
        ("rest", "reward_model"),
        ("rlaif", "model"),
        ("rlaif", "labeller"),
    ],
)
def test_a_start_that_fails_leaves_an_earlier_run_as_it_was(chain, stage, option, tmp_path):
    folder = shutil.copytree(SMOKE.dir(stage), tmp_path / "earlier")
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileNotFoundError, match="no such model"):
        train(stage, output_dir=folder, **{option: tmp_path / "none"})
    assert sorted(folder.rglob("*")) == before


@STAGES
def test_there_must_be_something_to_resume(chain, stage, tmp_path, capsys):
    folder = tmp_path / "new"
    arguments = ["train", stage, "--scale", "smoke", "--output-dir", str(folder), "--resume"]
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert errors == [f"error: {folder}: no run to resume. Start without --resume."]


# LoRA


@pytest.mark.parametrize("bits", [32, 4])
def test_sft_with_lora_writes_a_merged_model(home, tmp_path, bits):
    arguments = ["--lora-rank", "4", "--bits", str(bits), "--output-dir", str(tmp_path)]
    assert main(["train", "sft", "--scale", "smoke", *arguments]) == 0
    assert not list(tmp_path.glob("adapter*"))
    model, problems = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems.values()), problems
    assert type(model).__name__ == "OPTForCausalLM"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    base = AutoModelForCausalLM.from_pretrained(SMOKE.base_model, dtype=torch.float32).state_dict()
    for name, weight in model.state_dict().items():
        change = (weight - base[name]).abs().max()
        trained = "layers" in name and name.endswith("weight") and "norm" not in name
        assert (change > 0) == trained, name
        assert change < 0.1, name
