"""Our RLHF pipeline: SFT, reward model, PPO, bulk inference and evaluation, as KFP components.

One definition: `local.py` runs it on this machine, Kubeflow and Vertex AI run its YAML, in an image
that holds this package (`scripts/Dockerfile`). Its parameters are named as those of Google's
component, and a dict for that serves this one too:

| parameter | here |
|---|---|
| preference_dataset, prompt_dataset, eval_dataset | JSONL files or gs://…; else the course's |
| large_model_reference | a folder or a name of the hub; for Google's names the scale's own model |
| reward_model_train_steps | batches of 64 pairs, turned into epochs |
| reinforcement_learning_train_steps | rollouts of 64 responses |
| …_learning_rate_multiplier, kl_coeff, instruction | the same |
| prompt_sequence_length, target_sequence_length | tokens; PPO does not cut its prompts |
| model_display_name | written into the tuned model's metadata |
| project, location, encryption_spec_key_name | read when a job is submitted, not by the steps |
| deploy_model | no effect: this pipeline starts no endpoint |
| accelerator_type | no effect: see `make_pipeline` |
| tensorboard_resource_id | no effect: the logs lie beside each model, under `logs/` |

Three parameters are ours alone: `scale`, `seed` and `sft_dataset`. An empty text, 0 steps or tokens
and a kl_coeff below 0 mean the scale's own setting, since KFP's local runner takes no None.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl
from kfp.dsl.graph_component import GraphComponent

from rlhf_helpers.pipelines.components import (
    IMAGE,
    bulk_inference,
    evaluation,
    reinforcement_learning,
    reward_model_training,
    supervised_fine_tuning,
)

DESCRIPTION = "SFT, reward model, PPO, bulk inference, evaluation."


class Outputs(NamedTuple):
    """What the pipeline produces: three models, two sets of answers, and the evaluation."""

    sft_model: dsl.Model
    reward_model: dsl.Model
    tuned_model: dsl.Model
    untuned_predictions: dsl.Dataset
    tuned_predictions: dsl.Dataset
    metrics: dsl.Metrics


def make_pipeline(image: str = IMAGE, gpu_type: str = "", gpu_count: int = 0) -> GraphComponent:
    """Our pipeline, for a container image and for `gpu_count` GPUs in each step that trains.

    `gpu_type` is `nvidia.com/gpu` on Kubeflow, and one of Vertex AI's names there (`NVIDIA_L4`).
    With several GPUs a step trains in as many processes. All three are fixed at compile time:
    Kubeflow's driver silently ignores a number of GPUs that is a runtime parameter. Raises
    ValueError for GPUs without a type, and for fewer than 0.
    """
    _check_gpus(gpu_type, gpu_count)

    @dsl.pipeline(name="rlhf-portable", description=DESCRIPTION)
    def rlhf_pipeline(
        preference_dataset: str = "",
        prompt_dataset: str = "",
        eval_dataset: str = "",
        sft_dataset: str = "",
        large_model_reference: str = "",
        model_display_name: str = "",
        prompt_sequence_length: int = 0,
        target_sequence_length: int = 0,
        reward_model_learning_rate_multiplier: float = 1.0,
        reinforcement_learning_rate_multiplier: float = 1.0,
        reward_model_train_steps: int = 0,
        reinforcement_learning_train_steps: int = 0,
        kl_coeff: float = -1.0,
        instruction: str = "",
        scale: str = "tiny",
        seed: int = 0,
        deploy_model: bool = False,
        project: str = "",
        location: str = "",
        accelerator_type: str = "",
        encryption_spec_key_name: str = "",
        tensorboard_resource_id: str = "",
    ) -> Outputs:
        return _connect(locals(), image, gpu_type, gpu_count)

    return rlhf_pipeline


def _check_gpus(gpu_type: str, gpu_count: int) -> None:
    if gpu_count < 0 or (gpu_count and not gpu_type):
        raise ValueError(
            f"gpu_count is {gpu_count}, gpu_type {gpu_type!r}: give a number from 0, and with GPUs "
            "a type: nvidia.com/gpu (Kubeflow), or NVIDIA_L4, say (Vertex AI)"
        )


def _connect(given: Mapping[str, Any], image: str, gpu_type: str, gpu_count: int) -> Outputs:
    """Make the steps from the pipeline's parameters, and connect outputs with inputs."""

    def pick(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names}

    common = pick("scale", "seed", "instruction", "target_sequence_length")
    training = common | {"processes": max(1, gpu_count)}
    evaluated = common | pick("eval_dataset")
    lengths = pick("prompt_sequence_length")
    sft = supervised_fine_tuning(
        **pick("large_model_reference", "sft_dataset"), **lengths, **training
    )
    models = {"sft_model": sft.outputs["model"]}
    settings = pick("reward_model_train_steps", "reward_model_learning_rate_multiplier")
    data = pick("preference_dataset", "prompt_dataset")
    reward = reward_model_training(**models, **data, **settings, **lengths, **training)
    models["reward_model"] = reward.outputs["model"]
    settings = pick(
        "reinforcement_learning_train_steps", "reinforcement_learning_rate_multiplier", "kl_coeff"
    )
    names = pick("prompt_dataset", "model_display_name")
    ppo = reinforcement_learning(**models, **names, **settings, **training)
    models["tuned_model"] = ppo.outputs["model"]
    untuned = bulk_inference(model=models["sft_model"], **evaluated)
    tuned = bulk_inference(model=models["tuned_model"], **evaluated)
    predictions = {
        "untuned_predictions": untuned.outputs["predictions"],
        "tuned_predictions": tuned.outputs["predictions"],
    }
    found = evaluation(**models, **predictions, **evaluated)
    untuned.set_display_name("bulk-inference-untuned")
    tuned.set_display_name("bulk-inference-tuned")
    for task in (sft, reward, ppo, untuned, tuned, found):
        task.set_container_image(image)
    for task in (sft, reward, ppo) if gpu_count else ():
        task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
    return Outputs(**models, **predictions, metrics=found.outputs["metrics"])


rlhf_pipeline = make_pipeline()


def compile_pipeline(path: str | Path, pipeline: GraphComponent = rlhf_pipeline) -> Path:
    """Write our pipeline as YAML (`.yaml`), or JSON (`.json`), for Kubeflow and Vertex AI."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    return Path(path)
