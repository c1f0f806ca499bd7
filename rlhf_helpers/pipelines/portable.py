"""Our RLHF pipeline: SFT, reward model, PPO, bulk inference and evaluation, as KFP components.

One definition: `local.py` runs it on this machine, Kubeflow and Vertex AI run its YAML, in an image
that holds this package (`scripts/Dockerfile`). Its parameters are named as those of Google's
component, and a dict for that serves this one too:

| parameter | here |
|---|---|
| preference_dataset, prompt_dataset, eval_dataset | JSONL files or gs://…; else the course's |
| large_model_reference | a folder or a name of the hub; Google's names: the scale's own model |
| reward_model_train_steps | batches of 64 pairs, turned into epochs |
| reinforcement_learning_train_steps | rollouts of 64 responses |
| …_learning_rate_multiplier, kl_coeff, instruction | the same |
| prompt_sequence_length, target_sequence_length | tokens; PPO does not cut its prompts |
| model_display_name | written into the tuned model's metadata |
| project, location, encryption_spec_key_name | read when a job is submitted; nothing here |
| deploy_model | nothing: this pipeline starts no endpoint |
| accelerator_type | nothing: see `make_pipeline` |
| tensorboard_resource_id | nothing: the logs lie beside each model, under `logs/` |

Ours besides: `scale`, `seed`, `sft_dataset`. What is not given (an empty text, 0 steps or tokens, a
kl_coeff below 0: KFP runs no pipeline locally whose parameters may be None) is as the scale has it.
"""

from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl
from kfp.dsl.graph_component import GraphComponent

IMAGE = "rlhf-helpers:latest"  # what scripts/Dockerfile builds


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def supervised_fine_tuning(
    scale: str,
    seed: int,
    processes: int,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    large_model_reference: str = "",
    sft_dataset: str = "",
    instruction: str = "",
    prompt_sequence_length: int = 0,
    target_sequence_length: int = 0,
) -> None:
    """Fine-tune the base model on demonstrations."""
    from rlhf_helpers.pipelines import stages

    found = stages.train(
        "sft", model.path, scale, seed, processes,
        model=stages.base_model(large_model_reference), data=stages.local_path(sft_dataset),
        instruction=instruction, prompt_sequence_length=prompt_sequence_length,
        target_sequence_length=target_sequence_length,
    )  # fmt: skip
    stages.log(metrics, found)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reward_model_training(
    scale: str,
    seed: int,
    processes: int,
    sft_model: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    preference_dataset: str = "",
    prompt_dataset: str = "",
    reward_model_train_steps: int = 0,
    reward_model_learning_rate_multiplier: float = 1.0,
    instruction: str = "",
    prompt_sequence_length: int = 0,
    target_sequence_length: int = 0,
) -> None:
    """Train the reward model on pairs or rankings, from the SFT model."""
    from rlhf_helpers.pipelines import stages

    found = stages.train(
        "reward", model.path, scale, seed, processes,
        model=sft_model.path, sft_model=sft_model.path,
        data=stages.local_path(preference_dataset), prompts=stages.local_path(prompt_dataset),
        steps=reward_model_train_steps,
        learning_rate_multiplier=reward_model_learning_rate_multiplier,
        instruction=instruction, prompt_sequence_length=prompt_sequence_length,
        target_sequence_length=target_sequence_length,
    )  # fmt: skip
    stages.log(metrics, found)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reinforcement_learning(
    scale: str,
    seed: int,
    processes: int,
    sft_model: dsl.Input[dsl.Model],
    reward_model: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    prompt_dataset: str = "",
    reinforcement_learning_train_steps: int = 0,
    reinforcement_learning_rate_multiplier: float = 1.0,
    kl_coeff: float = -1.0,
    instruction: str = "",
    target_sequence_length: int = 0,
    model_display_name: str = "",
) -> None:
    """Tune the SFT model by PPO against the reward model."""
    from rlhf_helpers.pipelines import stages

    found = stages.train(
        "ppo", model.path, scale, seed, processes,
        model=sft_model.path, reward_model=reward_model.path,
        data=stages.local_path(prompt_dataset), steps=reinforcement_learning_train_steps,
        learning_rate_multiplier=reinforcement_learning_rate_multiplier,
        kl_coef=kl_coeff if kl_coeff >= 0 else None,
        instruction=instruction, target_sequence_length=target_sequence_length,
    )  # fmt: skip
    model.metadata["display_name"] = model_display_name or f"rlhf-{scale}-seed{seed}"
    stages.log(metrics, found)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def bulk_inference(
    scale: str,
    seed: int,
    model: dsl.Input[dsl.Model],
    predictions: dsl.Output[dsl.Dataset],
    eval_dataset: str = "",
    instruction: str = "",
    target_sequence_length: int = 0,
) -> None:
    """Let a model answer the evaluation prompts."""
    from rlhf_helpers.pipelines import stages

    predictions.metadata |= stages.predict(
        model.path, predictions.path, scale, seed, eval_dataset, instruction,
        target_sequence_length,
    )  # fmt: skip


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluation(
    scale: str,
    seed: int,
    sft_model: dsl.Input[dsl.Model],
    reward_model: dsl.Input[dsl.Model],
    tuned_model: dsl.Input[dsl.Model],
    untuned_predictions: dsl.Input[dsl.Dataset],
    tuned_predictions: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    eval_dataset: str = "",
    instruction: str = "",
    target_sequence_length: int = 0,
) -> None:
    """Measure the reward model and the tuned model, and compare both models' answers."""
    from rlhf_helpers.pipelines import stages

    found = stages.evaluate(
        {"tuned": tuned_model.path, "untuned": sft_model.path, "reward": reward_model.path},
        {"tuned": tuned_predictions.path, "untuned": untuned_predictions.path},
        scale, seed, eval_dataset, instruction, target_sequence_length,
    )  # fmt: skip
    stages.log(metrics, found)


class Outputs(NamedTuple):
    """What the pipeline leaves: three models, two sets of answers, and the evaluation."""

    sft_model: dsl.Model
    reward_model: dsl.Model
    tuned_model: dsl.Model
    untuned_predictions: dsl.Dataset
    tuned_predictions: dsl.Dataset
    metrics: dsl.Metrics


def make_pipeline(image: str = IMAGE, gpu_type: str = "", gpu_count: int = 0) -> GraphComponent:
    """Our pipeline, for a container image and for `gpu_count` GPUs in each step that trains.

    `gpu_type` is `nvidia.com/gpu` for Kubeflow, and one of Vertex AI's names there (`NVIDIA_L4`).
    With more than one GPU a step trains in as many processes, by `accelerate launch`. All three are
    fixed when the pipeline is compiled: as a runtime parameter, a whole number of GPUs would be
    dropped without a word by Kubeflow's driver, which reads resources as text only.

    Raises ValueError for GPUs without a type, or less than 0 of them.
    """
    if gpu_count < 0 or (gpu_count and not gpu_type):
        raise ValueError(
            f"gpu_count is {gpu_count}, gpu_type {gpu_type!r}: give a number from 0, and with GPUs "
            "a type: nvidia.com/gpu (Kubeflow), or NVIDIA_L4, say (Vertex AI)"
        )

    @dsl.pipeline(
        name="rlhf-portable",
        description="SFT, reward model, PPO, bulk inference, evaluation.",
    )
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
        common: dict[str, Any] = {"scale": scale, "seed": seed, "instruction": instruction}
        common["target_sequence_length"] = target_sequence_length
        training = common | {"processes": max(1, gpu_count)}
        sft = supervised_fine_tuning(
            large_model_reference=large_model_reference, sft_dataset=sft_dataset,
            prompt_sequence_length=prompt_sequence_length, **training,
        )  # fmt: skip
        reward = reward_model_training(
            sft_model=sft.outputs["model"], preference_dataset=preference_dataset,
            prompt_dataset=prompt_dataset, reward_model_train_steps=reward_model_train_steps,
            reward_model_learning_rate_multiplier=reward_model_learning_rate_multiplier,
            prompt_sequence_length=prompt_sequence_length, **training,
        )  # fmt: skip
        ppo = reinforcement_learning(
            sft_model=sft.outputs["model"], reward_model=reward.outputs["model"],
            prompt_dataset=prompt_dataset, kl_coeff=kl_coeff,
            reinforcement_learning_train_steps=reinforcement_learning_train_steps,
            reinforcement_learning_rate_multiplier=reinforcement_learning_rate_multiplier,
            model_display_name=model_display_name, **training,
        )  # fmt: skip
        untuned = bulk_inference(
            model=sft.outputs["model"], eval_dataset=eval_dataset, **common
        ).set_display_name("bulk-inference-untuned")
        tuned = bulk_inference(
            model=ppo.outputs["model"], eval_dataset=eval_dataset, **common
        ).set_display_name("bulk-inference-tuned")
        found = evaluation(
            sft_model=sft.outputs["model"], reward_model=reward.outputs["model"],
            tuned_model=ppo.outputs["model"], eval_dataset=eval_dataset,
            untuned_predictions=untuned.outputs["predictions"],
            tuned_predictions=tuned.outputs["predictions"], **common,
        )  # fmt: skip
        for task in (sft, reward, ppo, untuned, tuned, found):
            task.set_container_image(image)
        for task in (sft, reward, ppo) if gpu_count else ():
            task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
        return Outputs(
            sft_model=sft.outputs["model"],
            reward_model=reward.outputs["model"],
            tuned_model=ppo.outputs["model"],
            untuned_predictions=untuned.outputs["predictions"],
            tuned_predictions=tuned.outputs["predictions"],
            metrics=found.outputs["metrics"],
        )

    return rlhf_pipeline


rlhf_pipeline = make_pipeline()


def compile_pipeline(path: str | Path, pipeline: GraphComponent = rlhf_pipeline) -> Path:
    """Write our pipeline as YAML (`.yaml`), or JSON (`.json`), for Kubeflow and Vertex AI."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    return Path(path)
