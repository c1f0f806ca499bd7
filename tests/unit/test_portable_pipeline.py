"""Our pipeline: compiled for the cloud, run here from end to end, equal to its stages alone."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from rlhf_helpers import evaluation
from rlhf_helpers.commands.main import main, parse
from rlhf_helpers.configs import PPORunConfig, RewardConfig
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.models.devices import matmul_precision
from rlhf_helpers.pipelines import graph, local, parameters, portable, stages, vertex_rlhf
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.scales import Scale
from rlhf_helpers.schemas import read_predictions, read_preferences, read_prompts, write_jsonl
from rlhf_helpers.stages import train_stage

TRAINING = {"supervised-fine-tuning", "reward-model-training", "reinforcement-learning"}
GOOGLE = {  # what the original course gives to Google's component
    "preference_dataset": "gs://bucket/pairs.jsonl",
    "prompt_dataset": "gs://bucket/prompts.jsonl",
    "eval_dataset": "gs://bucket/eval.jsonl",
    "large_model_reference": "llama-2-7b",
    "reward_model_train_steps": 1410,
    "reinforcement_learning_train_steps": 320,
    "reward_model_learning_rate_multiplier": 1.0,
    "reinforcement_learning_rate_multiplier": 0.2,
    "kl_coeff": 0.1,
    "instruction": "Summarize in less than 50 words",
}


def spec_of(pipeline, folder: Path) -> PipelineSpec:
    text = portable.compile_pipeline(folder / "pipeline.yaml", pipeline).read_text()
    return ParseDict(yaml.safe_load(text), PipelineSpec())  # refuses what KFP's schema lacks


# ---- compiled ------------------------------------------------------------------------------


def test_the_yaml_is_a_pipeline_spec_of_kfp_with_typed_artefacts_and_caching(tmp_path):
    spec = spec_of(portable.rlhf_pipeline, tmp_path)
    tasks = spec.root.dag.tasks
    assert set(tasks) == TRAINING | {"bulk-inference", "bulk-inference-2", "evaluation"}
    assert all(task.caching_options.enable_cache for task in tasks.values())
    executors = dict(spec.deployment_spec["executors"].items())
    for task in tasks.values():
        assert spec.components[task.component_ref.name].executor_label in executors
    outputs = {
        name: output.artifact_type.schema_title
        for name, output in spec.root.output_definitions.artifacts.items()
    }
    assert outputs == {
        "sft_model": "system.Model",
        "reward_model": "system.Model",
        "tuned_model": "system.Model",
        "untuned_predictions": "system.Dataset",
        "tuned_predictions": "system.Dataset",
        "metrics": "system.Metrics",
    }


def test_image_and_gpus_are_where_both_kubeflow_and_vertex_read_them(tmp_path):
    pipeline = portable.make_pipeline("somewhere/image:1", "NVIDIA_L4", 4)
    for label, executor in spec_of(pipeline, tmp_path).deployment_spec["executors"].items():
        container = executor["container"]
        assert container["image"] == "somewhere/image:1"
        assert "pip install" not in json.dumps(list(container["command"]))
        if label.removeprefix("exec-") in TRAINING:
            accelerator = container["resources"]["accelerator"]
            assert accelerator["type"] == accelerator["resourceType"] == "NVIDIA_L4"
            assert accelerator["count"] == accelerator["resourceCount"] == "4"
        else:
            assert "resources" not in container
    tasks = pipeline.pipeline_spec.root.dag.tasks
    for name in TRAINING:
        processes = tasks[name].inputs.parameters["processes"].runtime_value.constant
        assert processes.number_value == 4
    without = spec_of(portable.rlhf_pipeline, tmp_path).deployment_spec["executors"]
    assert not any("resources" in executor["container"] for executor in without.values())


@pytest.mark.parametrize(("gpu_type", "gpu_count"), [("", 1), ("nvidia.com/gpu", -1)])
def test_gpus_need_a_type_and_a_number(gpu_type, gpu_count):
    with pytest.raises(ValueError, match="with GPUs a type"):
        portable.make_pipeline(gpu_type=gpu_type, gpu_count=gpu_count)


def test_a_dict_for_google_s_component_serves_ours():
    google = parameters.inputs(vertex_rlhf.pipeline())
    ours = parameters.inputs(portable.rlhf_pipeline)
    assert set(google) <= set(ours)
    assert {name: google[name].parameter_type for name in google} == {
        name: ours[name].parameter_type for name in google
    }
    parameters.check(GOOGLE, vertex_rlhf.pipeline())
    parameters.check(GOOGLE, portable.rlhf_pipeline)
    parameters.check(vertex_rlhf.RLHFParameters.from_dict(GOOGLE).values(), portable.rlhf_pipeline)


def test_a_changed_kl_coeff_concerns_ppo_and_what_follows_it_alone():
    """So everything else comes out of the cache."""
    tasks = portable.rlhf_pipeline.pipeline_spec.root.dag.tasks
    reads = {
        name
        for name, task in tasks.items()
        if "kl_coeff" in {p.component_input_parameter for p in task.inputs.parameters.values()}
    }
    assert reads == {"reinforcement-learning"}
    assert graph.dependencies(portable.rlhf_pipeline)["bulk-inference"] == {
        "supervised-fine-tuning"
    }


def test_the_picture_shows_the_order_and_no_arrow_twice():
    waits = graph.dependencies(portable.rlhf_pipeline)
    level = graph.levels(waits)
    assert [level[step] for step in ("supervised-fine-tuning", "reward-model-training")] == [0, 1]
    assert level["reinforcement-learning"] == 2 and level["evaluation"] == 4
    axes = graph.draw(portable.rlhf_pipeline)
    labels = {text.get_text().replace("\n", " ") for text in axes.texts if text.get_text()}
    assert {"bulk inference untuned", "bulk inference tuned", "evaluation"} < labels
    arrows = [text for text in axes.texts if not text.get_text()]
    assert len(arrows) == 6


# ---- parameters become configs -------------------------------------------------------------


def config_of(stage: str, scale: str = "tiny", **given):
    return stages.stage_config(stage, Scale(scale), Path("out"), **given)


def test_nothing_given_is_the_scale_s_own_config():
    for stage in ("sft", "reward", "ppo"):
        ours = (
            config_of(stage, instruction="", kl_coef=None) if stage == "ppo" else config_of(stage)
        )
        assert ours == Scale().config(stage, output_dir=Path("out"))


def test_google_s_parameters_turn_into_ours(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    record = {"input_text": "p", "candidate_0": "a", "candidate_1": "b", "choice": 0}
    write_jsonl(pairs, [record] * 32)
    lengths = {"prompt_sequence_length": 100, "target_sequence_length": 20}
    reward = config_of(
        "reward",
        data=pairs,
        steps=3,
        learning_rate_multiplier=0.5,
        instruction="Be brief.",
        **lengths,
    )
    assert isinstance(reward, RewardConfig)
    assert reward.epochs == 3 * 64 / 32
    assert reward.learning_rate == 0.5 * Scale().config("reward").learning_rate
    assert (reward.max_length, reward.max_new_tokens, reward.instruction) == (120, 20, "Be brief.")
    ppo = config_of("ppo", steps=320, kl_coef=0.0, **lengths)
    assert isinstance(ppo, PPORunConfig)
    assert (ppo.steps, ppo.kl_coef, ppo.max_new_tokens) == (320, 0.0, 20)
    assert config_of("sft", **lengths).max_length == 120
    assert config_of("sft", prompt_sequence_length=100).max_length == 148


def test_a_ranking_counts_as_its_pairs(tmp_path):
    path = tmp_path / "rankings.jsonl"
    record = {"input_text": "p", "candidates": list("abcd"), "ranking": [0, [1, 2], 3]}
    write_jsonl(path, [record] * 8)
    config = config_of("reward", data=path, steps=10)
    assert config.epochs == 10 * 64 / (8 * 5)  # five pairs: candidates 1 and 2 are tied


def test_names_of_google_s_models_mean_the_scale_s_own_and_gs_is_read_from_the_mount(caplog):
    assert stages.base_model("llama-2-7b") is stages.base_model("T5_XL") is None
    assert "llama-2-7b is a model of Google's component" in caplog.text
    assert stages.base_model("") is None
    assert stages.base_model("facebook/opt-125m") == "facebook/opt-125m"
    assert stages.local_path("gs://bucket/a/b.jsonl") == Path("/gcs/bucket/a/b.jsonl")
    assert stages.local_path("data/b.jsonl") == Path("data/b.jsonl")
    assert stages.local_path("") is None


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_several_gpus_are_trained_on_by_accelerate_with_the_same_settings(stage, tmp_path):
    config = Scale("smoke", seed=3).config(stage, output_dir=tmp_path, learning_rate=3e-4)
    command = stages.launch_command(stage, Scale("smoke", seed=3), config, 2)
    launcher, training = command[: command.index("rlhf_helpers") - 1], command[3:]
    assert launcher[:2] == [sys.executable, "-m"] and "--multi_gpu" in launcher
    assert launcher[launcher.index("--num_processes") + 1] == "2"
    options = parse(training[training.index("rlhf_helpers") + 1 :])
    names = {field.name for field in dataclasses.fields(config)} & set(vars(options))
    changes = {name: getattr(options, name) for name in names - {"seed"}}
    again = Scale(options.scale, options.task, options.seed).config(options.stage, **changes)
    for name, value in vars(config).items():
        found = getattr(again, name)
        assert found == value if isinstance(value, int | float) else str(found) == str(value), name


# ---- run -----------------------------------------------------------------------------------

VALUES = {"scale": "smoke", "seed": 1}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The whole pipeline, run once at `smoke`; its result, its folder and what it has shown."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(root))
        patch.setenv("RLHF_MATMUL_PRECISION", "highest")
        patch.setenv("OMP_NUM_THREADS", "1")
        shown = io.StringIO()
        patch.setattr(sys, "stdout", shown)
        found = local.run(VALUES)
        patch.undo()
        yield found, root, shown.getvalue()


@pytest.fixture
def folders(here, monkeypatch, tmp_path):
    """Where the pipeline has published, and where the stages run alone write."""
    monkeypatch.setenv("RLHF_MATMUL_PRECISION", "highest")
    matmul_precision.cache_clear()
    _, root, _ = here
    monkeypatch.setenv("RLHF_RUNS", str(root))
    published = Scale("smoke", seed=1)
    stages_alone = {stage: tmp_path / stage for stage in ("sft", "reward", "ppo")}
    yield published, stages_alone
    matmul_precision.cache_clear()


def numbers(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if "seconds" not in name}


@pytest.mark.slow
def test_it_publishes_models_logs_and_metrics_where_the_lessons_look(here, folders):
    found, root, shown = here
    published, _ = folders
    assert found.folder == root / "smoke" / "summarize" / "seed1" == published.dir("sft").parent
    for stage in ("sft", "reward", "ppo"):
        names = {path.name for path in published.dir(stage).iterdir()}
        assert {"model.safetensors", "metrics.json", "logs", "tokenizer.json"} <= names
        assert "checkpoints" not in names
        assert not evaluation.read_tensorboard(published.dir(stage)).empty
    for stage in ("sft", "ppo"):
        assert len(read_predictions(published.dir(stage) / "predictions.jsonl")) == 16
    report = json.loads((found.folder / "pipeline.json").read_text())
    assert report["parameters"] == VALUES and report["metrics"] == found.metrics
    assert {path.name for path in root.iterdir()} == {"smoke"}
    answers = {"bulk-inference-untuned", "bulk-inference-tuned"}
    assert set(found.seconds) == {*TRAINING, *answers, "evaluation"}
    for step in found.seconds:
        assert f"{step}: " in shown
    assert "reinforcement-learning 0%|" in shown


@pytest.mark.slow
def test_the_pipeline_gives_the_numbers_of_the_stages_run_alone(here, folders):
    found, _, _ = here
    published, alone = folders
    changes: dict[str, dict] = {
        "sft": {},
        "reward": {"model": alone["sft"], "sft_model": alone["sft"]},
        "ppo": {"model": alone["sft"], "reward_model": alone["reward"]},
    }
    for stage, given in changes.items():
        config = published.config(stage, output_dir=alone[stage], **given)
        direct = train_stage(stage, config)
        of_pipeline = json.loads((published.dir(stage) / "metrics.json").read_text())["metrics"]
        assert numbers(of_pipeline) == pytest.approx(numbers(direct.metrics), rel=1e-5), stage
    reward_model = RewardModel.from_pretrained(alone["reward"])
    direct_metrics, table = evaluation.evaluate_policy(
        load_policy(alone["ppo"]),
        load_tokenizer(alone["ppo"]),
        read_prompts(published.data("prompts", "test"))[:16],
        reward_model=reward_model,
        reference=load_policy(alone["sft"]),
        seed=1,
    )
    pairs = read_preferences(published.data("preferences", "test"))[:32]
    direct_metrics |= evaluation.evaluate_reward_model(reward_model, pairs)[0]
    ours = {name: found.metrics[name] for name in direct_metrics}
    assert ours == pytest.approx(direct_metrics, rel=1e-4, abs=1e-6)
    written = read_predictions(published.dir("ppo") / "predictions.jsonl")
    assert [record["prediction"] for record in written] == list(table["response"])
    assert found.metrics["gold_gain"] == pytest.approx(
        found.metrics["gold"] - found.metrics["gold_untuned"]
    )
    for name in ("win_rate", "win_rate_gold"):
        low, high = found.metrics[f"{name}_low"], found.metrics[f"{name}_high"]
        assert 0 <= low <= found.metrics[name] <= high <= 1


@pytest.mark.slow
def test_unchanged_steps_come_from_the_cache(here, folders, capsys):
    again = local.run(VALUES, cached=True)
    assert again.metrics == here[0].metrics
    assert set(again.seconds.values()) == {0.0}
    assert capsys.readouterr().out.count("from the cache") == 6


@pytest.mark.slow
def test_a_failed_run_publishes_nothing_and_says_where_it_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))
    missing = str(tmp_path / "no" / "model")
    arguments = ["--scale", "smoke", f"large_model_reference={missing}"]
    assert main(["pipeline", "run", *arguments]) == 1
    error = capsys.readouterr().err
    assert "supervised-fine-tuning failed; nothing was published" in error
    assert missing in error
    assert not (tmp_path / "smoke" / "summarize").exists()


def test_bad_input_is_found_before_the_first_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))
    broken = tmp_path / "pairs.jsonl"
    broken.write_text('{"input_text": "p"}\n')
    for given, words in (
        ([f"preference_dataset={broken}"], f"{broken}, line 1: "),
        (["kl_coef=0.1"], "did you mean 'kl_coeff'"),
        (["seed=-1"], "seed is -1"),
        (["prompt_dataset=gs://bucket/prompts.jsonl"], "/gcs/bucket/prompts.jsonl: no such file"),
        (["kl_coeff=high"], "kl_coeff is 'high': it must be a number"),
        (["kl_coeff"], "write NAME=VALUE"),
        (["--parameters", str(tmp_path / "none.json")], "cannot be read as JSON or YAML"),
        (["--parameters", str(broken)], "unknown parameter 'input_text'"),
    ):
        assert main(["pipeline", "run", "--scale", "smoke", *given]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_the_extra_one_is_told_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("rlhf_helpers.pipelines")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kfp", None)  # as if it were not installed
    assert main(["pipeline", "compile"]) == 1
    assert 'pip install "rlhf-helpers[cloud]"' in capsys.readouterr().err


def test_own_evaluation_data_may_be_prompts_alone(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [{"input_text": "a"}, {"input_text": "a"}, {"input_text": "b"}])
    prompts, pairs = stages.HeldOut("tiny", 0, str(path)).records()
    assert [record["input_text"] for record in prompts] == ["a", "b"] and pairs == []
    prompts, pairs = stages.HeldOut("smoke", 0).records()
    assert (len(prompts), len(pairs)) == (16, 32)
