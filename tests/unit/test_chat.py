"""Chat models are trained, scored and sampled in the format of their own template."""

import copy

import pytest
import torch
from test_prompts import FAMILIES, wrap
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

from rlhf_helpers import chat, dpo, ppo, reward_model, schemas, sft
from rlhf_helpers.annotation.judges import chat_question, language_model_judge
from rlhf_helpers.commands.main import main
from rlhf_helpers.configs import DPOConfig, SFTConfig
from rlhf_helpers.evaluation.reading import answer_logprobs
from rlhf_helpers.generation import encode_prompts, respond
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.prompts import (
    answer_end,
    answer_texts,
    answer_tokens,
    cut_prompt,
    prompt_tokens,
    whole_tokens,
)
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.reward_model.pairs import encode_pairs
from rlhf_helpers.rlaif import constitution_question
from rlhf_helpers.schemas import candidate_answers, format_prompt, format_response, join

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>\n\n"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "<|turn|>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] | trim }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>model\n{% endif %}"
)
TEMPLATES = {  # template, tokens of its own, a family of tokenizers, and what ends a turn
    "ChatML": (CHATML, ["<|im_start|>", "<|im_end|>"], "Qwen", "<|im_end|>"),
    "Llama 3": (LLAMA_3, ["<|start|>", "<|stop|>", "<|eot|>"], "Llama 3, Mistral", "<|eot|>"),
    "Llama 3's on GPT-2": (LLAMA_3, ["<|start|>", "<|stop|>", "<|eot|>"], "OPT", "<|eot|>"),
    "Llama 2": (LLAMA_2, [], "Llama 2, Mistral 0.1", "<eos>"),
    "Gemma": (GEMMA, ["<|turn|>", "<|end|>"], "Gemma", "<|end|>"),
}
EVERY = pytest.mark.parametrize("name", TEMPLATES)
QUESTION = "why does it matter?\n"
DIALOGUE = "\n\nSystem: Be brief.\n\nHuman: a cat?\n\nAssistant: ok.\n\nHuman: why?\n\nAssistant:"
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a cat?"},
    {"role": "assistant", "content": "ok."},
    {"role": "user", "content": "why?"},
]


def chat_tokenizer(name: str):
    """A tokenizer with the template of this name."""
    template, tokens, family, _ = TEMPLATES[name]
    tokenizer = wrap(FAMILIES[family]())
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = template
    tokenizer.padding_side = "left"
    return tokenizer


MADE = {name: chat_tokenizer(name) for name in TEMPLATES}


def deployed(tokenizer, messages) -> list[int]:
    """The tokens that a pipeline reads."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def user(content: str) -> list[dict]:
    return [{"role": "user", "content": content}]


@EVERY
def test_a_prompt_has_the_tokens_that_a_deployed_model_reads(name):
    tokenizer = MADE[name]
    (ids,) = prompt_tokens(tokenizer, [format_prompt(QUESTION)])
    assert ids == deployed(tokenizer, user(QUESTION))
    assert ids.count(tokenizer.bos_token_id) == ("bos_token" in tokenizer.chat_template)
    padded, mask = encode_prompts(tokenizer, [QUESTION, QUESTION * 2])
    assert padded[0][mask[0].bool()].tolist() == ids and mask[0, 0] == 0


@EVERY
def test_sft_learns_the_answer_and_the_end_of_the_turn_of_the_template(name, tmp_path):
    tokenizer, record = MADE[name], {"input_text": QUESTION, "output_text": " never sleeps "}
    config = SFTConfig(model="m", data="d", output_dir=tmp_path)
    row = sft.encode_demonstration(record, tokenizer, config)
    said = {"role": "assistant", "content": "never sleeps"}
    whole = tokenizer.apply_chat_template([*user(QUESTION), said])["input_ids"]
    if name != "Llama 3's on GPT-2":  # where the template's line breaks melt with what follows
        assert whole[: len(row["input_ids"])] == row["input_ids"]
        assert not tokenizer.decode(whole[len(row["input_ids"]) :]).strip()
    answer = [label for label in row["labels"] if label != -100]
    assert row["input_ids"] == deployed(tokenizer, user(QUESTION)) + answer
    assert tokenizer.convert_ids_to_tokens(answer[-1]) == TEMPLATES[name][3]
    assert answer[-1] == answer_end(tokenizer)
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "never sleeps"
    assert answer_texts(tokenizer, [answer]) == [" never sleeps"]


@EVERY
def test_a_prompt_that_is_rendered_already_is_left_alone(name, tmp_path):
    tokenizer = MADE[name]
    rendered = tokenizer.apply_chat_template(
        user(QUESTION), add_generation_prompt=True, tokenize=False
    )
    assert format_prompt(rendered) == rendered
    ids = prompt_tokens(tokenizer, [rendered, QUESTION])
    assert ids[0] == ids[1]
    answers = [answer_tokens(tokenizer, text, [" never sleeps"]) for text in (rendered, QUESTION)]
    assert answers[0] == answers[1] or name == "Llama 2"  # whose template writes a blank there
    if tokenizer.bos_token:
        bare = rendered.removeprefix(tokenizer.bos_token)
        assert prompt_tokens(tokenizer, [bare])[0].count(tokenizer.bos_token_id) == 1
    scored = whole_tokens(tokenizer, [rendered, QUESTION], [" ok."] * 2)
    assert scored[0] == scored[1] or name == "Llama 2"


def test_without_a_template_a_line_break_at_the_end_of_a_prompt_stays():
    tokenizer, prompt = wrap(FAMILIES["Qwen"]()), format_prompt("<u> why? <a>\n ")
    assert prompt == "<u> why? <a>\n"
    assert join(prompt, format_response("ok.")) == "<u> why? <a>\nok."
    (answer,) = answer_tokens(tokenizer, prompt, [format_response("ok.")])
    (head,) = prompt_tokens(tokenizer, [prompt])
    assert tokenizer.decode(head + answer) == "<u> why? <a>\nok."
    assert tokenizer.decode(answer) == "ok."


@EVERY
def test_dialogues_become_messages_with_their_system_prompt(name):
    tokenizer = copy.deepcopy(MADE[name])
    if name in ("Llama 2", "Gemma"):  # no place for a system prompt: it joins the user's turn
        first = {"role": "user", "content": "Be brief.\n\na cat?"}
        expected = deployed(tokenizer, [first, *TURNS[2:]])
    else:
        expected = deployed(tokenizer, TURNS)
    assert prompt_tokens(tokenizer, [format_prompt(DIALOGUE)]) == [expected]
    chat.set_chat(tokenizer, system_prompt="Be brief.")
    assert prompt_tokens(tokenizer, [DIALOGUE, DIALOGUE.replace("\n\nSystem: Be brief.", "")]) == [
        expected,
        expected,
    ]
    instructed = chat.messages_of(tokenizer, format_prompt("\n\nHuman: why?\n\nAssistant:", "Now:"))
    assert instructed[1:] == user("Now: why?")


@EVERY
def test_a_long_prompt_loses_its_oldest_turns_and_never_the_template(name):
    tokenizer = MADE[name]
    long = "\n\nSystem: Be brief." + "\n\nHuman: a cat?\n\nAssistant: ok." * 9
    long += "\n\nHuman: why? No!\n\nAssistant:"
    whole, last = prompt_tokens(tokenizer, [long, DIALOGUE.replace("a cat?", "why? No!")])
    for room in (len(last) + 9, len(last) - 9, len(last) - 12):
        cut = cut_prompt(long, tokenizer, room)
        (ids,) = prompt_tokens(tokenizer, [cut])
        assert len(ids) <= room < len(whole)
        messages = chat.messages_of(tokenizer, cut)
        assert messages[0] == TURNS[0] and messages[-1]["content"] in "why? No!"
        assert prompt_tokens(tokenizer, [long], room) == [ids]
    with pytest.raises(ValueError, match="more than 3 tokens without any prompt"):
        cut_prompt(long, tokenizer, 3)
    short = cut_prompt("a post about my cat and the dog. why? " * 9, tokenizer, 40)
    assert short.endswith("why?") or short.endswith("why? ")
    assert 30 < len(prompt_tokens(tokenizer, [short])[0]) <= 40


def test_the_choice_is_kept_with_the_tokenizer(tmp_path):
    chat_tokenizer("ChatML").save_pretrained(tmp_path)
    plain = wrap(FAMILIES["Qwen"]())
    assert chat.is_on(load_tokenizer(tmp_path)) and not chat.is_on(plain)
    chosen = load_tokenizer(tmp_path, "auto", "Be brief.")
    assert "on (the tokenizer's chat template, system prompt 'Be brief.')" in chat.describe(chosen)
    chosen.save_pretrained(tmp_path)
    assert chat.system_prompt_of(load_tokenizer(tmp_path)) == "Be brief."
    assert chat.system_prompt_of(load_tokenizer(tmp_path, system_prompt="")) == ""
    load_tokenizer(tmp_path, "off").save_pretrained(tmp_path / "off")
    off = load_tokenizer(tmp_path / "off")
    assert chat.describe(off) == "chat format: off (as chosen)"
    assert prompt_tokens(off, ["why?"]) == prompt_tokens(plain, ["why?"])
    assert chat.is_on(load_tokenizer(tmp_path / "off", "on"))
    assert chat.describe(plain) == "chat format: off (the tokenizer has no chat template)"
    with pytest.raises(ValueError, match="no chat template, so --chat cannot be on"):
        chat.set_chat(plain, "on")
    with pytest.raises(ValueError, match="a system prompt needs the chat format, which is off"):
        chat.set_chat(off, system_prompt="Be brief.")


def test_a_conversation_that_the_template_refuses_is_one_clear_error():
    tokenizer = copy.deepcopy(MADE["ChatML"])
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"refuses a conversation of user \(roles must alternate"):
        prompt_tokens(tokenizer, ["why?"])


# Whole stages


@pytest.fixture(params=["ChatML", "Llama 3"])
def base(request, tmp_path):
    """The folder of a tiny random Llama with a chat tokenizer, and its template's name."""
    tokenizer = chat_tokenizer(request.param)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


ANSWERS = {"why?": "never sleeps", "a cat?": "ok.", "a dog?": "No! (42 days)"}


@pytest.fixture
def tuned(base, tmp_path):
    """What SFT on three demonstrations leaves, with a system prompt."""
    rows = [{"input_text": prompt, "output_text": text} for prompt, text in ANSWERS.items()]
    schemas.write_jsonl(tmp_path / "demonstrations.jsonl", rows)
    config = SFTConfig(
        model=base,
        data=tmp_path / "demonstrations.jsonl",
        output_dir=tmp_path / "sft",
        system_prompt="Be brief.",
        epochs=60,
        batch_size=3,
        learning_rate=1e-2,
        warmup_steps=5,
    )
    assert sft.train(config).metrics["loss"] > 0
    return tmp_path / "sft"


def test_a_plain_pipeline_answers_as_trained(tuned):
    generate = pipeline("text-generation", model=str(tuned), device="cpu")
    for prompt, answer in ANSWERS.items():
        messages = [{"role": "system", "content": "Be brief."}, *user(prompt)]
        (found,) = generate(messages, do_sample=False, max_new_tokens=20)
        assert found["generated_text"][-1]["content"].strip() == answer
    policy, tokenizer = load_policy(tuned), load_tokenizer(tuned)
    assert answer_end(tokenizer) in policy.generation_config.eos_token_id
    ours = respond(policy, tokenizer, list(ANSWERS), max_new_tokens=20, temperature=0)
    assert [text.strip() for text in ours.texts] == list(ANSWERS.values())
    assert ours.ended == [True] * 3


@pytest.fixture
def scorer_folder(tmp_path):
    """The folder of a reward model with a chat template of its own, Gemma's."""
    tokenizer = chat_tokenizer("Gemma")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    return tmp_path / "scorer"


PAIR = {"input_text": QUESTION, "candidate_0": "ok.", "candidate_1": "never sleeps", "choice": 1}


def test_a_reward_model_reads_conversations_in_its_own_template(scorer_folder):
    scorer = RewardModel.from_pretrained(scorer_folder)
    theirs = scorer.tokenizer
    said = {"role": "assistant", "content": "never sleeps"}
    ids = theirs.apply_chat_template([*user(QUESTION), said], return_tensors="pt")["input_ids"]
    raw = scorer.model(input_ids=ids).logits.item()
    answers = candidate_answers([PAIR])
    assert scorer.raw_answer_scores(*answers)[1].item() == pytest.approx(raw, abs=1e-5)
    (row,) = encode_pairs([PAIR], reward_model.append_eos(copy.deepcopy(theirs), 256))
    assert row["chosen_ids"] == ids[0].tolist()
    long = " ".join(["a post about my cat"] * 90)
    theirs.model_max_length = 64
    (cut,) = whole_tokens(theirs, [long], [" ok."])
    assert len(cut) <= 64 and cut[:2] == ids[0, :2].tolist() and cut[-2:] == ids[0, -2:].tolist()
    with pytest.raises(ValueError, match=r"reads conversations.*call score\(prompts, responses\)"):
        scorer(["why? ok."])


def test_a_policy_s_answers_reach_a_reward_model_of_any_format(tuned, scorer_folder, encoder):
    policy, tokenizer = load_policy(tuned), load_tokenizer(tuned)
    config = ppo.PPOConfig(batch_size=4, mini_batch_size=4, samples_per_prompt=2, max_new_tokens=12)
    trainer = ppo.PPOTrainer(policy, tokenizer, config)
    rollout = trainer.rollout(["why?", "a cat?"])
    assert rollout.texts[0].startswith("why? ") and "<|" not in "".join(rollout.texts)
    own = RewardModel.from_pretrained(scorer_folder)
    expected = own.raw_answer_scores(rollout.prompts, [f" {text}" for text in rollout.responses])
    assert own.raw_answer_scores(rollout.prompts, rollout.answers).tolist() == expected.tolist()
    plain = RewardModel.from_pretrained(encoder)
    assert plain.score(rollout.prompts, rollout.answers) == plain(rollout.texts)
    stats = trainer.step(rollout, own.score(rollout.prompts, rollout.answers))
    assert stats["eos_rate"] > 0.5 and abs(stats["kl"]) < 1e-4


def test_dpo_compares_answers_with_the_template_s_end(tuned, tmp_path):
    tokenizer = load_tokenizer(tuned)
    config = DPOConfig(model=tuned, data="d", output_dir=tmp_path)
    row = dpo.encode_pair(PAIR, tokenizer, config)
    messages = [{"role": "system", "content": "Be brief."}, *user(QUESTION)]
    assert row["prompt_ids"] == deployed(tokenizer, messages)
    assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == answer_end(tokenizer)
    (measured,) = answer_logprobs(load_policy(tuned), tokenizer, [PAIR])
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    with torch.no_grad():
        logprobs = load_policy(tuned)(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    chosen = logprobs.gather(-1, ids[0, 1:, None])[-len(row["chosen_ids"]) :].sum().item()
    assert measured[1] == pytest.approx(chosen, abs=1e-3)


def test_a_labeller_that_chats_is_asked_by_a_message(base):
    policy, tokenizer = load_policy(base), load_tokenizer(base)
    judge = language_model_judge(policy, tokenizer)
    asked = chat_question("why?", "ok.", "never sleeps")
    ids = deployed(tokenizer, user(asked))
    labels = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in ("1", "2")]
    assert [len(label) for label in labels] == [1, 1]
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([ids])).logits[0, -1, [labels[0][0], labels[1][0]]]
    expected = logits.softmax(0)[1].item()
    assert judge(["why?"], ["ok."], ["never sleeps"]) == pytest.approx([expected], abs=1e-5)
    assert constitution_question(["Be kind."], chat_question)("p", "a", "b").endswith("alone.")


def test_stages_run_in_the_chat_format_and_say_so(tuned, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))
    pairs = [{**PAIR, "input_text": f"why? {i}"} for i in range(8)]
    schemas.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    few = ["--model", tuned, "--batch-size", "4", "--warmup-steps", "0"]
    to = {name: ["--output-dir", tmp_path / name] for name in ("reward", "ppo", "dpo", "rest")}
    common = ["--data", tmp_path / "pairs.jsonl", *few]
    sampled = ["--max-new-tokens", "6"]
    sft_model = ["--sft-model", tuned, "--prompts", tmp_path / "pairs.jsonl"]
    loop = ["--steps", "1", "--mini-batch-size", "4", "--samples-per-prompt", "2"]
    loop += ["--reward-model", tmp_path / "reward", "--ptx-coef", "0", *sampled]
    grown = ["--grow-steps", "1", "--improve-steps", "1", "--grow-prompts", "4", *sampled]
    for stage, words in (
        ("reward", [*common, *sft_model, *sampled, "--head", "last_token"]),
        ("ppo", [*common, *loop]),
        ("dpo", common),
        ("rest", [*common, *grown, "--reward-model", tmp_path / "reward"]),
    ):
        words = ["train", stage, "--scale", "smoke", *words, *to[stage]]
        assert main([str(word) for word in words]) == 0, capsys.readouterr().err
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith("chat format: on") and "'Be brief.'" in first
        assert chat.system_prompt_of(load_tokenizer(tmp_path / stage)) == "Be brief."
    words = ["evaluate", "--scale", "smoke", "--policy", str(tmp_path / "ppo"), *sampled]
    assert main([*words, "--prompts", str(tmp_path / "pairs.jsonl")]) == 0
    assert "chat format: on" in capsys.readouterr().out
    plain = ["train", "sft", "--scale", "smoke", "--chat", "on"]
    assert main(plain) == 2
    assert "has no chat template, so --chat cannot be on" in capsys.readouterr().err
