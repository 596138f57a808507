"""Tokens, completion masks and batches, against hand-counted ids and against transformers' own tokenizer calls."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from hcnr_jax.data import (
    Batch,
    Example,
    Row,
    check_tokenizers,
    encode_rows,
    example_warnings,
    fit_rows,
    load_tokenizer,
    pad_examples,
)
from hcnr_jax.data.tokenizer import added_tokens
from hcnr_jax.errors import InputError
from tests.tiny import CHAT_TEMPLATE, VOCABULARY, write_tiny_tokenizer

PLAIN = Row("rows.jsonl", 3, "sky ?", " blue .")
CHAT = Row(
    "rows.jsonl",
    4,
    messages=({"role": "user", "content": "sky ?"}, {"role": "assistant", "content": "blue ."}),
)


def ids(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.index(word) for word in text.split())


def edit_config(folder: Path, **changes: object) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_tokenizer(tmp_path / "tokenizer", CHAT_TEMPLATE)


def test_plain_row_is_prompt_completion_end(folder: Path) -> None:
    (example,) = encode_rows([PLAIN], load_tokenizer(folder), 512)
    assert example == Example(ids("<s> sky ? blue . </s>"), 3, PLAIN)


def test_an_end_token_the_tokenizer_adds_is_neither_doubled_nor_counted(folder: Path) -> None:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert added_tokens(tokenizer) == ((1,), (2,))
    (example,) = encode_rows([PLAIN], tokenizer, 512)
    assert example == Example(ids("<s> sky ? blue . </s>"), 3, PLAIN)


def test_begin_and_end_tokens_written_in_the_row_are_not_doubled(folder: Path) -> None:
    row = Row("rows.jsonl", 1, "<s> sky ?", " blue . </s>")
    (example,) = encode_rows([row], load_tokenizer(folder), 512)
    assert (example.tokens, example.completion_start, example.merged) == (ids("<s> sky ? blue . </s>"), 3, False)


def test_without_begin_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path, add_bos=False))
    (example,) = encode_rows([PLAIN], tokenizer, 512)
    assert (example.tokens, example.completion_start) == (ids("sky ? blue . </s>"), 2)


def test_chat_row_takes_the_template_s_own_begin_and_end(folder: Path) -> None:
    (example,) = encode_rows([CHAT], load_tokenizer(folder), 512)
    assert example == Example(ids("<s> user : sky ? assistant : blue . </s>"), 7, CHAT)


@pytest.mark.parametrize(
    ("closing", "ending"),
    [("", "blue . </s>"), (" <s>\\n", "blue . <s>"), (" </s>\\n", "blue . </s>"), (" you", "blue . you </s>")],
)
def test_chat_end_token_is_added_only_where_the_template_left_the_turn_open(
    tmp_path: Path, closing: str, ending: str
) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + (' ' if m['role'] == 'user' else '"
        + closing
        + "') }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )
    (example,) = encode_rows([CHAT], load_tokenizer(write_tiny_tokenizer(tmp_path, template)), 512)
    assert example.tokens[example.completion_start :] == ids(ending)


def test_only_the_last_assistant_turn_is_completion(folder: Path) -> None:
    turns = [
        ("system", "it you"),
        ("user", "sky ?"),
        ("assistant", "blue ."),
        ("user", "sun ?"),
        ("assistant", "red ."),
    ]
    row = Row("rows.jsonl", 1, messages=tuple({"role": role, "content": text} for role, text in turns))
    (example,) = encode_rows([row], load_tokenizer(folder), 512)
    assert example.tokens[example.completion_start :] == ids("red . </s>")


def test_chat_without_template_is_refused_with_the_remedy(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "bare"))
    with pytest.raises(
        InputError, match=r"^rows.jsonl, line 4: .*needs a chat template.*bare has none; add the model's"
    ):
        encode_rows([CHAT], tokenizer, 512)


def test_template_that_refuses_the_messages_names_the_row(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path, "{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(InputError, match=r"^rows.jsonl, line 4: the chat template of .*roles must alternate"):
        encode_rows([CHAT], tokenizer, 512)


def test_no_end_token_is_refused_for_plain_rows(folder: Path) -> None:
    tokenizer = load_tokenizer(edit_config(folder, eos_token=None))
    with pytest.raises(InputError, match=r"line 3: .*end token.*set eos_token"):
        encode_rows([PLAIN], tokenizer, 512)
    (example,) = encode_rows([CHAT], tokenizer, 512)
    assert example.tokens[-1] == 2


def test_cut_at_the_end_to_the_smaller_limit(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for limits in ({"max_length": 4}, {"max_length": 512, "max_positions": 4}, {"max_length": 4, "max_positions": 9}):
        (example,) = encode_rows([PLAIN], tokenizer, **limits)
        assert (example.tokens, example.completion_start, example.cut) == (ids("<s> sky ? blue"), 3, 2)
        (warning,) = example_warnings([example])
        assert warning.startswith("rows.jsonl, line 3: cut by 2 tokens")
    (example,) = encode_rows([PLAIN], tokenizer, 6)
    assert example.cut == 0 and example_warnings([example]) == []


@pytest.mark.parametrize(
    ("max_length", "max_positions", "source"), [(3, None, "--max-length"), (512, 3, "the model's positions")]
)
def test_row_with_no_completion_token_left_is_refused(
    folder: Path, max_length: int, max_positions: int | None, source: str
) -> None:
    with pytest.raises(InputError) as error:
        encode_rows([PLAIN], load_tokenizer(folder), max_length, max_positions=max_positions)
    assert str(error.value).startswith(
        f"rows.jsonl, line 3: the prompt takes 3 tokens and the limit is 3 ({source}), so no completion token is left"
    )


def test_id_beyond_the_model_s_embedding_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    top = max(ids("<s> sky ? blue . </s>"))
    encode_rows([PLAIN], tokenizer, 512, vocab_size=top + 1)
    with pytest.raises(InputError, match=f"line 3: .* gives id {top}, the model embeds {top} ids"):
        encode_rows([PLAIN], tokenizer, 512, vocab_size=top)


def test_tokens_joined_across_the_boundary_keep_the_rule_and_are_warned_about(tmp_path: Path) -> None:
    letters = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "ab": 5}
    backend = Backend(models.BPE(vocab=letters, merges=[("a", "b")], unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    joined, clean = encode_rows([Row("r", 1, "ca", "bc"), Row("r", 2, "cc", "ab")], tokenizer, 9)
    assert (joined.tokens, joined.completion_start, joined.merged) == ((4, 5, 4, 1), 2, True)
    assert (clean.tokens, clean.completion_start, clean.merged) == ((4, 4, 5, 1), 2, False)
    (warning,) = example_warnings([clean, joined])
    assert (
        warning.startswith("r, line 1: ")
        and "(so in 1 of 2 rows)" in warning
        and "start the completion with" in warning
    )


def test_batch_is_right_padded_with_masks_from_lengths_even_where_pad_is_the_end_token(folder: Path) -> None:
    tokenizer = load_tokenizer(edit_config(folder, pad_token="</s>"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    examples = encode_rows([PLAIN, Row("rows.jsonl", 5, "sun", " red")], tokenizer, 512)
    batch = pad_examples(examples, length=8, rows=3)
    assert batch.tokens.tolist() == [
        [*ids("<s> sky ? blue . </s>"), 0, 0],
        [*ids("<s> sun red </s>"), 0, 0, 0, 0],
        [0] * 8,
    ]
    assert batch.attention_mask.sum(axis=1).tolist() == [6, 4, 0]
    assert batch.completion_mask.tolist() == [
        [False, False, False, True, True, True, False, False],
        [False, False, True, True, False, False, False, False],
        [False] * 8,
    ]
    assert (batch.tokens.dtype, batch.attention_mask.dtype, batch.completion_mask.dtype) == (np.int32, bool, bool)


def test_batch_defaults_to_the_longest_and_is_a_pytree(folder: Path) -> None:
    examples = encode_rows([PLAIN], load_tokenizer(folder), 512)
    batch = pad_examples(examples)
    assert batch.tokens.shape == (1, 6)
    counted = jax.jit(lambda b: Batch(b.tokens, b.attention_mask, ~b.completion_mask))(batch)
    assert isinstance(counted, Batch) and int(counted.completion_mask.sum()) == 3


@pytest.mark.parametrize("wrong", [{"length": 5}, {"rows": 0}])
def test_batch_that_does_not_fit_is_refused(folder: Path, wrong: dict[str, int]) -> None:
    examples = encode_rows([PLAIN], load_tokenizer(folder), 512)
    with pytest.raises(ValueError, match="1 examples of up to 6 tokens, which do not fit"):
        pad_examples(examples, **wrong)
    with pytest.raises(ValueError, match="at least one example"):
        pad_examples([])


def test_tokenizers_that_agree_pass_and_others_name_the_first_row(tmp_path: Path, folder: Path) -> None:
    tuned = load_tokenizer(folder)
    check_tokenizers(tuned, load_tokenizer(write_tiny_tokenizer(tmp_path / "same", CHAT_TEMPLATE)), [PLAIN, CHAT])
    base = load_tokenizer(write_tiny_tokenizer(tmp_path / "base", CHAT_TEMPLATE.replace("' : '", "' , '")))
    check_tokenizers(tuned, base, [PLAIN])
    with pytest.raises(
        InputError, match=r"^rows.jsonl, line 4: the tokenizer of TUNED .*first difference at position 2"
    ):
        check_tokenizers(tuned, base, [PLAIN, CHAT])
    begins_not = load_tokenizer(write_tiny_tokenizer(tmp_path / "bos", add_bos=False))
    with pytest.raises(InputError, match=r"^rows.jsonl, line 3: .*gives 6 tokens .*from 3, BASE's .* 5 from 2"):
        check_tokenizers(tuned, begins_not, [PLAIN])


def test_unreadable_tokenizer_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: expected a folder with a tokenizer, found nothing"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"half: there is no tokenizer.json \(nor tokenizer.model"):
        load_tokenizer(tmp_path / "half")
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match="its tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_real_tokenizer_gives_the_ids_transformers_gives(real_data: Path) -> None:
    tokenizer = load_tokenizer(real_data / "models" / "stories3M")
    prompt, completion = "Question: who was the first man?\nAnswer:", " I don't know."
    (example,) = encode_rows([Row("rows.jsonl", 1, prompt, completion)], tokenizer, 512, max_positions=512)
    assert list(example.tokens) == [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
    assert example.tokens[0] == tokenizer.bos_token_id and not example.merged
    assert example.completion_start == len(tokenizer(prompt)["input_ids"])
    assert tokenizer.decode(example.tokens[example.completion_start :]).strip() == "I don't know.</s>"


def long_row(line: int, prompt: int, completion: int) -> Row:
    return Row("rows.jsonl", line, " ".join(["sky"] * prompt), " blue" * completion)


def test_long_rows_are_refused_dropped_or_cut_with_counts(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    rows = [long_row(1, 2, 2), long_row(2, 9, 2), long_row(3, 2, 9), long_row(4, 3, 2)]
    groups = [(row,) for row in rows]
    with pytest.raises(InputError, match=r"line 2: the prompt takes 10 tokens and the limit is 8 .* --long-rows drop"):
        fit_rows(groups, tokenizer, 8)
    kept, (warning,) = fit_rows(groups, tokenizer, 8, long_rows="drop")
    assert [example.row.line for (example,) in kept] == [1, 4]
    assert warning.startswith("rows.jsonl, line 2: 2 of 4 rows are longer than the limit of 8 tokens and are left out")
    kept, (warning,) = fit_rows(groups, tokenizer, 8, long_rows="cut")
    assert [(example.row.line, example.cut) for (example,) in kept] == [(1, 0), (3, 5), (4, 0)]
    assert "1 of 4 rows have a prompt that fills the limit" in warning
    kept, _ = fit_rows(groups, tokenizer, 8, long_rows="drop", count=2)
    assert [example.row.line for (example,) in kept] == [1, 4]
    pairs, _ = fit_rows([(rows[0], rows[2]), (rows[0], rows[3])], tokenizer, 8, long_rows="drop")
    assert [[example.row.line for example in pair] for pair in pairs] == [[1, 4]]
    with pytest.raises(InputError, match=r"no row is left: raise --max-length"):
        fit_rows(groups[1:2], tokenizer, 8, long_rows="drop")
