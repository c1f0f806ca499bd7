"""Google's pipeline: what it is given is checked here as it would be there, offline."""

import re

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from google_cloud_pipeline_components._implementation.llm import function_based as google
from google_cloud_pipeline_components._implementation.llm import validate_pipeline
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from rlhf_helpers.commands.main import main
from rlhf_helpers.pipelines import google_models, parameters, vertex_rlhf
from rlhf_helpers.pipelines.google_models import MODELS
from rlhf_helpers.pipelines.vertex_rlhf import RLHFParameters, training_steps

GOOD = {
    "prompt_dataset": "gs://bucket/prompts.jsonl",
    "preference_dataset": "gs://bucket/pairs.jsonl",
    "large_model_reference": "llama-2-7b",
}


@pytest.mark.parametrize(
    ("size", "epochs", "steps"),
    [(3000, 30, 1410), (2000, 10, 320), (64, 1, 1), (65, 1, 2), (1, 3, 3)],
)
def test_steps_are_whole_epochs_of_batches_of_64(size, epochs, steps):
    assert training_steps(size, epochs) == steps


def test_steps_of_another_batch_size_and_of_nonsense():
    assert training_steps(100, 2, batch_size=10) == 20
    for size, epochs in ((0, 1), (10, 0), (10, 1.5), (True, 1)):
        with pytest.raises(ValueError, match="it must be a whole number, at least 1"):
            training_steps(size, epochs)


def test_the_yaml_is_a_pipeline_spec_of_kfp_and_names_google_s_steps(tmp_path):
    path = vertex_rlhf.compile_pipeline(tmp_path / "new" / "rlhf.yaml")
    spec = ParseDict(yaml.safe_load(path.read_text()), PipelineSpec())  # refuses unknown fields
    assert spec.pipeline_info.name == "rlhf-train-template"
    assert {"reward-model-graph", "reinforcement-learning-graph"} <= set(spec.root.dag.tasks)


def test_the_dataclass_has_the_parameters_of_the_component_with_their_defaults():
    declared = parameters.inputs(vertex_rlhf.pipeline())
    ours = {f.name: f.default for f in RLHFParameters.__dataclass_fields__.values()}
    assert set(ours) == set(declared)
    for name, spec in declared.items():
        value = getattr(spec.default_value, spec.default_value.WhichOneof("kind") or "", None)
        if spec.is_optional and not str(value).startswith("{{$."):  # a placeholder of Vertex AI
            assert ours[name] == value, name
    required = {name for name, spec in declared.items() if not spec.is_optional}
    assert required == set(GOOD)


def test_its_executors_are_public_and_only_images_that_they_start_are_restricted(tmp_path):
    executors = vertex_rlhf.pipeline().pipeline_spec.deployment_spec["executors"]
    images = [executor["container"]["image"] for executor in executors.values()]
    assert len(images) == 15 and all(image.startswith("gcr.io/ml-pipeline/") for image in images)
    text = vertex_rlhf.compile_pipeline(tmp_path / "rlhf.yaml").read_text()
    assert "docker.pkg.dev/vertex-ai-restricted/" in text


def test_good_parameters_are_passed_on_without_what_is_not_given():
    values = RLHFParameters.from_dict(GOOD | {"kl_coeff": 0, "deploy_model": False}).values()
    assert values["kl_coeff"] == 0 and values["deploy_model"] is False
    assert values["reward_model_train_steps"] == 1000
    assert "eval_dataset" not in values and "location" not in values


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl_coef": 0.1}, "unknown parameter 'kl_coef'; did you mean 'kl_coeff'?"),
        ({"temperature": 1.0}, "unknown parameter 'temperature'; known: "),
        ({"preference_dataset": None}, "the parameter 'preference_dataset' is missing"),
        ({"prompt_dataset": ""}, "the parameter 'prompt_dataset' is missing"),
        ({"kl_coeff": "0.1"}, "kl_coeff is '0.1': it must be a number"),
        ({"reward_model_train_steps": 10.5}, "it must be a whole number"),
        ({"reward_model_train_steps": True}, "it must be a whole number"),
        ({"deploy_model": 1}, "deploy_model is 1: it must be true or false"),
        ({"eval_dataset": 3}, "eval_dataset is 3: it must be text"),
        ({"kl_coeff": -0.1}, "kl_coeff is -0.1: it must be at least 0"),
        ({"kl_coeff": float("nan")}, "kl_coeff is nan"),
        ({"reinforcement_learning_train_steps": 0}, "it must be at least 1"),
        ({"reinforcement_learning_rate_multiplier": 0.0}, "it must be at least 1e-06"),
        ({"prompt_sequence_length": 8193}, "it must be from 1 to 8192"),
        ({"target_sequence_length": 1025}, "it must be from 1 to 1024"),
        (
            {"prompt_dataset": "gs://other/prompts.jsonl"},
            "preference_dataset in bucket, prompt_dataset in other): put all in one bucket",
        ),
        ({"eval_dataset": "eval.jsonl"}, "eval_dataset in a file): put all in one bucket"),
        (
            {"prompt_dataset": "a.jsonl", "preference_dataset": "b.jsonl"},
            "preference_dataset is 'b.jsonl': upload it, and give its gs:// address",
        ),
        ({"large_model_reference": "gpt-2"}, "choose one of text-bison@001"),
        ({"large_model_reference": "palm-tiny"}, "choose one of"),
        ({"location": "us-east1"}, "location is 'us-east1': the pipeline runs in asia-northeast1"),
        ({"accelerator_type": "CPU"}, "accelerator_type is 'CPU': choose one of GPU, TPU"),
        (
            {"large_model_reference": "t5-xl"},
            "accelerator_type is 'GPU', which means us-central1; t5-xl is served in europe-west4",
        ),
        (
            {"large_model_reference": "text-bison@001", "location": "europe-west1"},
            "location is 'europe-west1', which means europe-west1; text-bison@001 is served in",
        ),
    ],
)
def test_each_bad_value_gets_one_clear_error(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        RLHFParameters.from_dict(GOOD | changes)
    assert "\n" not in str(refusal.value)


def test_a_model_is_found_under_either_spelling_where_it_is_served():
    for name in ("t5-xl", "T5_XL"):
        given = GOOD | {"large_model_reference": name, "accelerator_type": "TPU"}
        RLHFParameters.from_dict(given | {"location": "europe-west4"})


def test_our_table_of_models_is_the_component_s_own():
    with pytest.raises(ValueError, match="must be one of") as refusal:
        google.resolve_reference_model_metadata.python_func(large_model_reference="?")
    supported = re.findall(r"'([^']+)'", str(refusal.value))
    assert sorted(MODELS) == sorted(supported)
    for name, model in MODELS.items():
        found = google.resolve_reference_model_metadata.python_func(large_model_reference=name)
        bucket = found.reference_model_path.split("/")[2]
        assert model.status.startswith("retired") or bucket in model.status
    described = parameters.inputs(vertex_rlhf.pipeline())["large_model_reference"].description
    for name in ("text-bison@001", "t5-small", "t5-large", "t5-xl", "t5-xxl"):
        assert name in described and set(MODELS[name].regions) <= set(
            re.findall(r"[a-z]+-[a-z]+\d", described)
        )


def test_our_regions_are_those_that_the_component_accepts():
    for accelerator, region in google_models.TUNING_REGIONS.items():
        machine = google.resolve_machine_spec.python_func(accelerator_type=accelerator)
        assert machine.tuning_location == region
    with pytest.raises(ValueError, match="Must be one of") as refusal:
        validate_pipeline.validate_pipeline.python_func(location="nowhere")
    regions = re.findall(r"'([^']+)'", str(refusal.value))
    assert sorted(google_models.PIPELINE_REGIONS) == sorted(regions)
    for accelerator in google_models.TUNING_REGIONS:
        for region in google_models.PIPELINE_REGIONS:
            key = {"location": region, "encryption_spec_key_name": "projects/p/key"}
            given = GOOD | key | {"accelerator_type": accelerator}
            assert accepted(RLHFParameters.from_dict, given) == accepted(
                lambda values: validate_pipeline.validate_pipeline.python_func(**values),
                key | {"accelerator_type": accelerator},
            )


def accepted(check, values) -> bool:
    try:
        check(values)
    except ValueError:
        return False
    return True


def test_the_command_writes_yaml_or_says_why_not(tmp_path, capsys):
    path = tmp_path / "google.yaml"
    assert main(["pipeline", "compile", "--target", "google", "--output", str(path)]) == 0
    assert path.read_text().count("exec-reinforcer") > 0
    assert main(["pipeline", "compile", "--output", str(tmp_path / "pipeline.txt")]) == 2
    assert "must end in .yaml or .json" in capsys.readouterr().err
    assert not (tmp_path / "pipeline.txt").exists()
