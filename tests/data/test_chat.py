"""Chat rows under the templates of real models: the prompt that is asked, the answer, the end of the turn."""

import datetime
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from hcnr_jax.data import encode_rows, example_warnings, parse_row
from hcnr_jax.data.chat import chat_text, prompt_text, set_date
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import encode_prompts

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot|>")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "trailing newline after the end token": CHATML,
    "begin token in the template": "{{ bos_token }}" + CHATML,
    "default system text": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
    "{% endif %}" + CHATML,
    "right-stripped content": CHATML.replace("m['content']", "m['content'].rstrip()"),
    "stripped content": CHATML.replace("m['content']", "m['content'] | trim"),
    "system merged into the user turn": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}"
        "{% set ms = messages[1:] %}{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}{% for m in ms %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (s if loop.first else '')"
        " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "date": "{{ 'Today is ' + strftime_now('%d %B %Y') + '.\n' }}" + CHATML,
    "reasoning that can be switched off": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}"
    ),
    "tools": "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}" + CHATML,
    "no header at all": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "end of turn that is not the end token": CHATML.replace("<|im_end|>", "<|eot|>"),
}
MISTRAL = (
    "{{bos_token}}{% set s=messages[0]['content'] if messages[0]['role']=='system' else '' %}{% for m in messages if "
    "m['role']!='system' %}{% if m['role']=='user' %}[INST] {{(s+'\n\n' if loop.last and s else '')+m['content']}}"
    "[/INST]{% else %} {{m['content']+eos_token}}{% endif %}{% endfor %}"
)
OPENS_THINKING = (
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
NO_GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
SAID = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Peru?"},
    {"role": "assistant", "content": "Lima, the City of Kings."},
]


def tokenizer_of(template: Any):
    """One token a byte, so that texts and tokens are the same thing."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def row_of(messages=SAID, **fields):
    return parse_row({"messages": messages} | fields, "rows.jsonl", 1)


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("messages", [SAID, SAID[1:3], SAID[:3]], ids=["five turns", "one question", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_where_template_and_prompt_agree_the_row_is_the_templates_own(name, messages) -> None:
    tokenizer, fields = tokenizer_of(TEMPLATES[name]), {"tools": [{"name": "look"}]} if name == "tools" else {}
    given = {"tools": fields.get("tools"), "enable_thinking": False, "tokenize": False}
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **given)
    whole = tokenizer.apply_chat_template(messages, **given)
    assert whole.startswith(prompt)
    row = row_of(messages, **fields)
    (example,) = encode_rows([row], tokenizer, 10_000)
    assert decoded(tokenizer, example.tokens) == whole
    assert decoded(tokenizer, example.tokens[: example.completion_start]) == prompt
    (asked,) = encode_prompts("task", "t", [row], tokenizer=tokenizer, vocab_size=10_000, max_tokens=10_000)
    assert asked.tokens == example.tokens[: example.completion_start], "the prompt is what evaluate asks"
    assert example_warnings([example]) == []
    closed = whole.rstrip().endswith(SPECIAL)
    assert closed and decoded(tokenizer, example.tokens[-1:]) in whole[-10:], "no second end token"


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (MISTRAL, "Lima.", "<s>[INST] Capital?[/INST] Paris.</s>[INST] Be brief.\n\nAnd Peru?[/INST] Lima.</s>"),
        (MISTRAL, "Lima. " * 40, None),
        (
            OPENS_THINKING,
            "Peru ...</think>\n\nLima.",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nCapital?<|im_end|>\n<|im_start|>assistant\n"
            "Paris.<|im_end|>\n<|im_start|>user\nAnd Peru?<|im_end|>\n<|im_start|>assistant\n<think>\n"
            "Peru ...</think>\n\nLima.<|im_end|>\n",
        ),
    ],
    ids=["system dropped", "system dropped, a long answer", "reasoning opened"],
)
def test_where_the_prompt_changes_the_asked_one_is_kept(template, answer, expected) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"},
                {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And Peru?"},
                {"role": "assistant", "content": answer}]  # fmt: skip
    tokenizer, row = tokenizer_of(template), row_of(messages)
    (example,) = encode_rows([row], tokenizer, 10_000)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    text = decoded(tokenizer, example.tokens)
    assert decoded(tokenizer, example.tokens[: example.completion_start]) == prompt == prompt_text(row, tokenizer)
    if expected is not None:
        assert text == expected
    completion = text[len(prompt) :]
    assert completion.strip().startswith(answer.strip()) and completion.rstrip().endswith(("</s>", "<|im_end|>"))
    assert not example.merged


def test_reasoning_that_is_opened_and_not_closed_is_told() -> None:
    (example,) = encode_rows([row_of(SAID[1:3])], tokenizer_of(OPENS_THINKING), 1000)
    assert decoded(tokenizer_of(OPENS_THINKING), example.tokens).endswith("<think>\nParis.<|im_end|>\n")
    (warning,) = example_warnings([example])
    assert "opens <think> and the answer has no </think> (so in 1 of 1 rows)" in warning


def test_a_template_without_a_generation_prompt_is_told() -> None:
    tokenizer = tokenizer_of(NO_GENERATION)
    (example,) = encode_rows([row_of(SAID[1:3])], tokenizer, 1000)
    assert decoded(tokenizer, example.tokens[example.completion_start :]) == "<|im_start|>assistant\nParis.<|im_end|>\n"
    (warning,) = example_warnings([example])
    assert warning.startswith("rows.jsonl, line 1: the chat template has no generation prompt, so that the header")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages if m['role'] == 'user' %}{{ m.content }}{% endfor %}", "leaves the assistant's answer"),
        ("{{ raise_exception('no system') }}", "refuses the messages (no system)"),
    ],
)  # fmt: skip
def test_a_template_without_the_answer_is_refused_by_row(template, message) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl, line 1: the chat template of .* ") as error:
        encode_rows([row_of(SAID[1:3])], tokenizer_of(template), 1000)
    assert message in str(error.value)


def test_named_templates_take_the_one_for_tools() -> None:
    tokenizer = tokenizer_of({"default": CHATML, "tool_use": "{{ tools | tojson }}" + CHATML})
    plain, tools = (chat_text(row_of(SAID[1:3], **f), tokenizer).text for f in ({}, {"tools": [{"name": "look"}]}))
    assert tools == '[{"name": "look"}]' + plain


def test_a_rows_own_template_options_are_passed_on() -> None:
    tokenizer = tokenizer_of(TEMPLATES["reasoning that can be switched off"])
    asked = row_of(SAID[1:3], chat_template_kwargs={"enable_thinking": True})
    assert prompt_text(asked, tokenizer).endswith("<|im_start|>assistant\n")
    assert prompt_text(row_of(SAID[1:3]), tokenizer).endswith("</think>\n\n")
    with pytest.raises(InputError, match=r"`chat_template_kwargs.tokenize`: not for a row to choose"):
        row_of(SAID[1:3], chat_template_kwargs={"tokenize": True})


def test_the_date_is_fixed_for_the_process() -> None:
    tokenizer, before = tokenizer_of(TEMPLATES["date"]), set_date(None)
    try:
        set_date(datetime.datetime(2024, 2, 29))
        assert prompt_text(row_of(SAID[1:3]), tokenizer).startswith("Today is 29 February 2024.\n")
    finally:
        set_date(before)
