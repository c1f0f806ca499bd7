"""The steps of our RLHF pipeline as KFP components; `stages` does their work.

KFP copies each function by its source, so that every component imports what it needs itself. An
empty text, 0 steps or tokens and a kl_coeff below 0 mean the scale's own setting.
"""

from kfp import dsl

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
        "sft",
        model.path,
        scale,
        seed,
        processes,
        model=stages.base_model(large_model_reference),
        data=stages.local_path(sft_dataset),
        instruction=instruction,
        prompt_sequence_length=prompt_sequence_length,
        target_sequence_length=target_sequence_length,
    )
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
        "reward",
        model.path,
        scale,
        seed,
        processes,
        model=sft_model.path,
        sft_model=sft_model.path,
        data=stages.local_path(preference_dataset),
        prompts=stages.local_path(prompt_dataset),
        steps=reward_model_train_steps,
        learning_rate_multiplier=reward_model_learning_rate_multiplier,
        instruction=instruction,
        prompt_sequence_length=prompt_sequence_length,
        target_sequence_length=target_sequence_length,
    )
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
        "ppo",
        model.path,
        scale,
        seed,
        processes,
        model=sft_model.path,
        reward_model=reward_model.path,
        data=stages.local_path(prompt_dataset),
        steps=reinforcement_learning_train_steps,
        learning_rate_multiplier=reinforcement_learning_rate_multiplier,
        kl_coef=kl_coeff if kl_coeff >= 0 else None,
        instruction=instruction,
        target_sequence_length=target_sequence_length,
    )
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

    held_out = stages.HeldOut(scale, seed, eval_dataset, instruction, target_sequence_length)
    predictions.metadata |= held_out.predict(model.path, predictions.path)


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

    held_out = stages.HeldOut(scale, seed, eval_dataset, instruction, target_sequence_length)
    found = held_out.evaluate(
        {"tuned": tuned_model.path, "untuned": sft_model.path, "reward": reward_model.path},
        {"tuned": tuned_predictions.path, "untuned": untuned_predictions.path},
    )
    stages.log(metrics, found)
