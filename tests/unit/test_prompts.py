"""Tokens are what the text says: tokenizers of ten families, trained here on a few words."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_helpers.configs import DPOConfig, SFTConfig
from rlhf_helpers.dpo import encode_pair
from rlhf_helpers.generation import encode_prompts, respond
from rlhf_helpers.jsonl import is_blank
from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.prompts import (
    answer_texts,
    answer_tokens,
    cut_prompt,
    cut_tokens,
    prompt_room,
    prompt_tokens,
)
from rlhf_helpers.reward_model import append_eos, encode_pairs
from rlhf_helpers.schemas import candidate_texts, format_prompt, format_response, join
from rlhf_helpers.sft import encode_demonstration

WORDS = "a post about my cat and the neighbor's dog [summary]: never sleeps (42 days), why? No! ok."
CORPUS = [" ".join(WORDS.split()[i:] + WORDS.split()[:i]) for i in range(16)]
WHITE = "▁"
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def begun(token: str, ids: Tokenizer, **others) -> processors.TemplateProcessing:
    """What puts `token` in front of every text."""
    special = [(token, ids.token_to_id(token))]
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=special
    )


def byte_level(bos="", normalizer=None, split="", prefix=False, trim=True) -> Tokenizer:
    """A byte-level BPE, as of GPT-2 and its heirs."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not split)
    parts = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(dict.fromkeys([bos or "<eos>", "<eos>"])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    level = processors.ByteLevel(trim_offsets=trim)
    tokenizer.post_processor = processors.Sequence([level, begun(bos, tokenizer)]) if bos else level
    return tokenizer


def sentence_piece(form: str) -> Tokenizer:
    """A BPE with byte fallback: `legacy` and `first` as of Llama 2, `gemma` without a prefix."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    scheme = "first" if form == "first" else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WHITE, prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<unk>", "<s>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    if form != "first":
        tokenizer.normalizer = normalizers.Replace(" ", WHITE)
    tokenizer.train_from_iterator(CORPUS, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # the bytes are tokens like any other
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    ends = [decoders.Replace(WHITE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if form == "legacy":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(WHITE), normalizers.Replace(" ", WHITE)]
        )
    if form == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            WHITE, prepend_scheme="first", split=False
        )
    else:
        split = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.pre_tokenizer = split if form == "gemma" else pre_tokenizers.Sequence([])
    tokenizer.decoder = decoders.Sequence(
        ends if form == "gemma" else [*ends, decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = begun("<s>", tokenizer)
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's unigram model as of T5, which ends every text with EOS."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WHITE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(WHITE, prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<eos>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


FAMILIES = {
    "GPT-2, Phi": byte_level,
    "GPT-2 with a prefix blank": lambda: byte_level(prefix=True),
    "OPT": lambda: byte_level("</s>", trim=False),
    "GPT-NeoX": lambda: byte_level(normalizer=normalizers.NFC()),
    "Llama 3, Mistral": lambda: byte_level("<s>", split=LLAMA_3_SPLIT),
    "Qwen": lambda: byte_level(normalizer=normalizers.NFC(), split=LLAMA_3_SPLIT),
    "Llama 2, Mistral 0.1": lambda: sentence_piece("legacy"),
    "Llama 2, not legacy": lambda: sentence_piece("first"),
    "Gemma": lambda: sentence_piece("gemma"),
    "T5": unigram,
}
BYTES = [name for name in FAMILIES if name not in ("T5", "GPT-NeoX", "Qwen")]  # any text is kept


def wrap(tokenizer: Tokenizer, clean_up: bool = True) -> PreTrainedTokenizerFast:
    bos = next((t for t in ("<s>", "</s>") if tokenizer.token_to_id(t) is not None), None)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>" if tokenizer.token_to_id("<unk>") is not None else None,
        clean_up_tokenization_spaces=clean_up,
    )


MADE = {name: wrap(make()) for name, make in FAMILIES.items()}
EVERY = pytest.mark.parametrize("name", FAMILIES)
SENTENCES = st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=30).map(" ".join)
ANY = st.text(max_size=40).filter(lambda text: not is_blank(text) and "<" not in text)


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text, without the EOS that T5 puts behind it."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


@EVERY
@settings(max_examples=25)
@given(post=SENTENCES, answer=SENTENCES)
def test_prompt_and_answer_have_the_tokens_of_the_whole(name, post, answer):
    tokenizer, prompt = MADE[name], format_prompt(post)
    (head,) = prompt_tokens(tokenizer, [prompt])
    (tail,) = answer_tokens(tokenizer, prompt, [format_response(answer)])
    assert head + tail == whole(tokenizer, prompt + format_response(answer))
    assert head.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)
    assert tokenizer.eos_token_id not in head + tail


@EVERY
@settings(max_examples=25)
@given(post=SENTENCES, answer=SENTENCES)
def test_an_answer_s_tokens_come_back_as_its_text(name, post, answer):
    tokenizer, prompt = MADE[name], format_prompt(post)
    response = format_response(answer)
    (ids,) = answer_tokens(tokenizer, prompt, [response])
    assert answer_texts(tokenizer, [[*ids, tokenizer.eos_token_id]]) == [response]


@EVERY
def test_blanks_in_front_of_punctuation_are_kept(name):
    tokenizer, response = MADE[name], " never ! a cat , why ? dog 's ok ."
    (ids,) = answer_tokens(tokenizer, "post", [response])
    assert answer_texts(tokenizer, [ids]) == [response]


@pytest.mark.parametrize("name", BYTES)
@settings(max_examples=25)
@given(post=ANY, answer=ANY)
def test_any_answer_comes_back_where_the_tokenizer_knows_all_bytes(name, post, answer):
    tokenizer, prompt = MADE[name], format_prompt(post)
    response = join(prompt, format_response(answer))[len(prompt) :]
    (ids,) = answer_tokens(tokenizer, prompt, [response])
    assert answer_texts(tokenizer, [ids]) == [response.replace(WHITE, " ")] or WHITE in response


@EVERY
@settings(max_examples=25)
@given(post=SENTENCES, answers=st.tuples(SENTENCES, SENTENCES))
def test_reward_models_read_in_training_what_they_read_in_ppo(name, post, answers):
    tokenizer = MADE[name]
    pair = {"input_text": post, "candidate_0": answers[0], "candidate_1": answers[1], "choice": 0}
    prompt = format_prompt(post)
    sampled = answer_tokens(tokenizer, prompt, [format_response(answer) for answer in answers])
    texts = answer_texts(tokenizer, [[*ids, tokenizer.eos_token_id] for ids in sampled])
    assert [prompt + text for text in texts] == list(candidate_texts(pair))


@EVERY
def test_a_prompt_with_its_own_bos_gets_no_second_one(name):
    tokenizer = MADE[name]
    prompt = (tokenizer.bos_token or "") + "why?"
    assert prompt_tokens(tokenizer, [prompt]) == prompt_tokens(tokenizer, ["why?"]) or (
        name.startswith("Llama 2")  # whose first word after a special token has no blank
    )
    ids, mask = encode_prompts(tokenizer, [prompt, prompt + " No! ok. 42 days"])
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    assert len(rows[0]) < len(rows[1]) == ids.shape[1] and mask[0, -1] == 1  # left padded
    for row in rows:
        assert row.count(tokenizer.bos_token_id) == bool(tokenizer.bos_token)
        assert tokenizer.eos_token_id not in row and tokenizer.pad_token_id not in row


@EVERY
@settings(max_examples=25)
@given(post=SENTENCES, length=st.integers(1, 40))
def test_a_cut_prompt_keeps_bos_and_end_and_is_not_longer_than_asked(name, post, length):
    tokenizer, prompt = MADE[name], format_prompt(post)
    (ids,) = prompt_tokens(tokenizer, [prompt])
    cut = cut_tokens(tokenizer, ids, length)
    assert len(cut) == min(length, len(ids))
    assert cut[0] == ids[0] or tokenizer.bos_token is None
    assert cut[1:] == ids[len(ids) - len(cut) + 1 :]
    text = cut_prompt(prompt, tokenizer, length)
    assert prompt.endswith(text)
    assert len(prompt_tokens(tokenizer, [text])[0]) <= max(length, bool(tokenizer.bos_token))
    assert text == prompt or len(ids) > length
    assert text or length < 5  # as much as there is room for


@EVERY
def test_all_stages_cut_to_what_the_model_reads_and_keep_bos(name, tmp_path):
    tokenizer = wrap(FAMILIES[name]())
    tokenizer.model_max_length = 24
    record = {
        "input_text": WORDS * 9,
        "output_text": "ok.",
        "candidate_0": "ok.",
        "candidate_1": "No!",
        "choice": 1,
    }
    common = {"model": "m", "data": "d", "output_dir": tmp_path}
    sft = encode_demonstration(record, tokenizer, SFTConfig(**common))
    dpo = encode_pair(record, tokenizer, DPOConfig(**common))
    (scored,) = encode_pairs([record], append_eos(wrap(FAMILIES[name]()), 24))
    room = prompt_room(tokenizer, 4, 512)
    (prompt,) = prompt_tokens(tokenizer, [cut_prompt(record["input_text"], tokenizer, room)])
    assert len(sft["input_ids"]) == len(scored["chosen_ids"]) == 24
    assert dpo["length"] == 24 and 12 < len(prompt) <= room == 20
    if tokenizer.bos_token:
        begins = sft["input_ids"][0], dpo["prompt_ids"][0], scored["chosen_ids"][0], prompt[0]
        assert set(begins) == {tokenizer.bos_token_id}
    answer = sft["input_ids"][sft["labels"].count(-100) :]
    assert answer == dpo["rejected_ids"] and answer[-1] == tokenizer.eos_token_id
    assert answer_texts(tokenizer, [answer]) == [" ok."]


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused():
    tokenizer = wrap(byte_level())
    tokenizer.model_max_length = 24
    with pytest.raises(ValueError, match="max_new_tokens is 24, but the model reads at most 24"):
        prompt_room(tokenizer, 24)


def test_a_tokenizer_knows_how_much_its_model_reads(tmp_path):
    wrap(byte_level()).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).model_max_length > 1e6  # no model is there
    config = {"model_type": "gpt2", "n_positions": 96}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).model_max_length == 96
    assert append_eos(load_tokenizer(tmp_path), 512).model_max_length == 96


@pytest.fixture
def short_model() -> GPT2LMHeadModel:
    """A model that reads at most 24 tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(MADE["GPT-2, Phi"])}
        return GPT2LMHeadModel(GPT2Config(n_positions=24, **size)).eval()


def test_sampling_cuts_prompts_to_what_the_model_reads(short_model):
    tokenizer = wrap(byte_level())
    tokenizer.model_max_length = 24
    settings = {"max_new_tokens": 4, "temperature": 0.0, "reference": short_model}
    found = respond(short_model, tokenizer, [WORDS * 5, "why?"], **settings)
    assert found == respond(short_model, tokenizer, ["No! ok. " + WORDS * 3, "why?"], **settings)
    assert found != respond(short_model, tokenizer, [WORDS * 3 + " No!", "why?"], **settings)
    with pytest.raises(ValueError, match="lower --max-new-tokens"):
        respond(short_model, tokenizer, ["why?"], max_new_tokens=24)
