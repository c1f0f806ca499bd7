"""The exercises of L6: labels, adapters, memory."""

from typing import Any

from rlhf_helpers.checks.feedback import Feedback, try_function


def labels(answer: Any) -> Feedback:
    """Check `answer(prompt_ids, response_ids, eos)`: `input_ids` and `labels`, two lists."""

    def encoded(prompt: list[int], response: list[int], eos: int) -> tuple[list[int], list[int]]:
        return [*prompt, *response, eos], [*[-100] * len(prompt), *response, eos]

    return try_function(
        answer,
        encoded,
        [([5, 6, 7], [8, 9], 2), ([4], [3, 2, 1], 0)],
        {
            "The end-of-sequence token is missing: such a model learns never to stop.": (
                lambda prompt, response, eos: (prompt + response, [-100] * len(prompt) + response)
            ),
            "The end-of-sequence token needs a label, or nobody teaches the model to stop.": (
                lambda prompt, response, eos: (
                    [*prompt, *response, eos],
                    [*[-100] * len(prompt), *response, -100],
                )
            ),
            "Mask the prompt with -100: we want good answers, not more posts.": (
                lambda prompt, response, eos: ([*prompt, *response, eos],) * 2
            ),
            "No shift here: the model compares position t with the label at t + 1 by itself.": (
                lambda prompt, response, eos: (
                    [*prompt, *response, eos],
                    [*[-100] * (len(prompt) - 1), *response, eos, -100],
                )
            ),
        },
        "Right: the loss is on the response and its end, and nowhere else.",
        "input_ids are prompt + response + [eos]; labels are as long, with -100 on the prompt.",
    )


def lora_parameters(answer: Any) -> Feedback:
    """Check `answer(inputs, outputs, rank)`: how many weights LoRA trains beside one matrix."""
    return try_function(
        answer,
        lambda inputs, outputs, rank: rank * (inputs + outputs),
        [(2048, 2048, 16), (2048, 8192, 16), (10, 20, 1)],
        {
            "That is the whole matrix, which stays frozen.": (
                lambda inputs, outputs, rank: inputs * outputs
            ),
            "There are two matrices: A is rank × inputs, B is outputs × rank.": (
                lambda inputs, outputs, rank: rank * inputs
            ),
            "Two thin matrices beside each other: their sizes add.": (
                lambda inputs, outputs, rank: rank * inputs * outputs
            ),
        },
        "Right: at rank 16, a matrix of 2,048 × 2,048 is trained with 1.6% of its weights.",
        "A has rank × inputs weights and B outputs × rank.",
    )
