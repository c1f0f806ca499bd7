"""Four questions that show at a glance what fine-tuning has done, answered before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.generation import encode_prompts, end_ids, respond
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.prompts import answer_texts
from rlhf_helpers.schemas import format_prompt

# The kinds of question that the course before asked its tuned model, in words of ours, with the
# template that its demonstrations have.
QUESTIONS = [
    f"Question: {question}\n\nAnswer:"
    for question in (
        "Rewrite this advertisement so that the shop stands in Portugal: 'Our bakery in Toronto, "
        "Canada, opens at six. Pay in Canadian dollars, and try the maple buns!'",
        "What are standing waves, and where does one meet them in daily life?",
        "What is this text about? 'It began as a whisper on the tin roof. By noon the gutters "
        "sang, the street had become a brook, and nobody had brought an umbrella.'",
        "What is this text about? 'She had not called for a year. When she rang, he simply put the "
        "kettle on and asked which train she would take, as if it had been a day.'",
    )
]
# How the course before generated: four beams, each drawn from the ten likeliest tokens.
BEAMS = {"num_beams": 4, "do_sample": True, "top_k": 10, "temperature": 0.6}


def beam_answers(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> list[str]:
    """Answers to formatted prompts, by beam search with sampling."""
    ids, mask = (x.to(policy.device) for x in encode_prompts(tokenizer, prompts))
    with torch.random.fork_rng():  # `generate` takes no generator of its own
        torch.manual_seed(seed)
        output = policy.generate(
            input_ids=ids,
            attention_mask=mask,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end_ids(policy, tokenizer),
            max_new_tokens=max_new_tokens,
            **BEAMS,
        )
    return answer_texts(tokenizer, output[:, ids.shape[1] :].tolist())


def before_and_after(
    models: Mapping[str, str | Path],
    prompts: Sequence[str] = QUESTIONS,
    seed: int = 0,
    *,
    temperatures: Sequence[float] = (),
    instruction: str = "",
    max_new_tokens: int = 128,
    chat: str = "auto",
    system_prompt: str | None = None,
) -> pd.DataFrame:
    """Columns `prompt`, and the answers of each model (name -> folder or name of the hub).

    They come from `beam_answers`; with `temperatures` they are sampled, a column a temperature.
    `chat` and `system_prompt` are those of `chat.set_chat`.
    """
    texts, columns = [format_prompt(prompt, instruction) for prompt in prompts], {}
    for name, folder in models.items():
        model = load_policy(folder), load_tokenizer(folder, chat, system_prompt)
        settings = {"max_new_tokens": max_new_tokens, "seed": seed}
        if not temperatures:
            columns[name] = beam_answers(*model, texts, **settings)
        for temperature in temperatures:
            sampled = respond(*model, texts, temperature=temperature, **settings)
            columns[f"{name}, T = {temperature:g}"] = sampled.texts
    answers = {name: [text.strip() for text in found] for name, found in columns.items()}
    return pd.DataFrame({"prompt": list(prompts), **answers})
