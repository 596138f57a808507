"""Random faults in the files of a tiny valid pair: JSON values, safetensors headers, rows, templates, raw bytes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

_KEYS = """
    hidden_size num_attention_heads num_key_value_heads num_hidden_layers vocab_size rope_theta rope_scaling
    rope_parameters sliding_window layer_types max_position_embeddings rms_norm_eps tie_word_embeddings head_dim
    model_type architectures quantization_config torch_dtype eos_token_id bos_token_id attention_bias hidden_act
    messages prompt completion role content tools chat_template_kwargs conversations answers choices correct
    answerable r lora_alpha target_modules peft_type use_dora rank_pattern alpha_pattern modules_to_save bias
    layers_to_transform dtype shape data_offsets weight_map metadata chat_template eos_token added_tokens
"""
KEYS = st.sampled_from(_KEYS.split())
_NUMBERS: list[Any] = [2**31, 2**63, 10**30, -1, 0.5, 1e-300, 1e308, float("nan"), float("inf")]
_WORDS = ["", " ", "F32", "BF16", "I8", "user", "assistant", "<s>", "</s>", "linear", "llama3", "../x", "\ud800"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from(_NUMBERS),
    st.text(max_size=6),
    st.sampled_from(_WORDS),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FRAGMENTS = (
    "{{ bos_token }}", "{% for m in messages %}", "{% endfor %}", "{{ m['role'] }}", "{{ m['content'] }}",
    "{{ m.content | trim }}", "{{ messages[0]['content'] }}", "{{ messages[9]['content'] }}",
    "{% if add_generation_prompt %}", "{% endif %}", "{% else %}", "{{ 'assistant : ' }}", "{{ eos_token }}",
    "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ tools | tojson }}", "<think>", "</s> ",
    "{{ strftime_now('%Y') }}",
    "{% set x = namespace(a=1) %}", "{{ x.a.b.c }}", "{{ m }}", "{{ undefined_thing.attr }}", "{% generation %}", " ",
)  # fmt: skip


class Mutation(NamedTuple):
    """One change: the file (relative), what is done, and where it draws its numbers from."""

    file: str
    kind: str
    places: tuple[int, ...]
    value: Any
    key: str


MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
FILES = {
    "pair": (
        *(f"{side}/{name}" for side in ("base", "tuned") for name in MODEL_FILES),
        *("honesty.jsonl", "task.jsonl", "tuned/chat_template.jinja"),
        *("tuned/model.safetensors.index.json", "tuned/adapter_config.json"),
    ),
    "adapter": ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md", "task.jsonl"),
}
KINDS = ("replace", "delete", "add", "replace", "delete", "add", "bytes", "truncate", "remove", "empty")


def mutations(kind: str) -> st.SearchStrategy[list[Mutation]]:
    """One to three changes of the files of a pair, or of a base with an adapter."""
    one = st.builds(
        Mutation,
        st.sampled_from(FILES[kind]),
        st.sampled_from(
            ["replace", "delete", "add", "replace", "delete", "add", "bytes", "truncate", "remove", "empty"]
        ),
        st.tuples(*[st.integers(0, 10_000)] * 6),
        VALUES,
        KEYS | st.text(max_size=5),
    )
    return st.lists(one, min_size=1, max_size=3)


def copy_pair(source: Path, target: Path) -> Path:
    """Link every file of a folder tree; a file that is changed is written anew."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def apply(folder: Path, change: Mutation) -> None:
    """Make one change."""
    path = folder / change.file
    raw = path.read_bytes() if path.exists() else b"{}"
    path.unlink(missing_ok=True)
    if change.kind == "remove":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_changed(path, raw, change))


def _changed(path: Path, raw: bytes, change: Mutation) -> bytes:
    if change.kind == "empty":
        return b""
    if change.kind == "truncate":
        return raw[: change.places[0] * len(raw) // 10_000]
    if change.kind == "bytes":
        at = change.places[0] % (min(len(raw), 400) + 1)
        return raw[:at] + bytes(place % 256 for place in change.places[1:4]) + raw[at + change.places[4] % 4 :]
    if path.suffix == ".jinja":
        return _template(raw.decode("utf-8", "replace"), change).encode("utf-8", "replace")
    if path.suffix == ".safetensors":
        return _header(raw, change)
    if path.suffix == ".jsonl":
        return _rows(raw, change)
    return _edited(raw, change)


def _edited(raw: bytes, change: Mutation) -> bytes:
    try:
        value = json.loads(raw)
    except ValueError:
        return raw
    return _dump(edit(value, change))


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _rows(raw: bytes, change: Mutation) -> bytes:
    lines = raw.split(b"\n")
    at = change.places[5] % len(lines)
    lines[at] = _edited(lines[at] or b"{}", change)
    return b"\n".join(lines)


def _header(raw: bytes, change: Mutation) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    try:
        header = _dump(edit(json.loads(raw[8 : 8 + size]), change))
    except ValueError:
        return raw
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


def _template(text: str, change: Mutation) -> str:
    pieces = [FRAGMENTS[place % len(FRAGMENTS)] for place in change.places]
    if change.kind == "replace":
        return "".join(pieces)
    at = change.places[0] % (len(text) + 1)
    return text[:at] + (pieces[1] if change.kind == "add" else "") + text[at + change.places[2] % 30 :]


def edit(value: Any, change: Mutation) -> Any:
    """Replace, delete or add an entry somewhere in a JSON value, walking down by the change's places."""
    if not isinstance(value, dict | list) or not value:
        return change.value
    parent, place = value, 0
    for step in change.places[:4]:
        keys: list[Any] = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        place = keys[step % len(keys)]
        inner = parent[place]
        if not isinstance(inner, dict | list) or not inner or step % 3 == 0:
            break
        parent = inner
    else:
        place = next(iter(parent)) if isinstance(parent, dict) else 0
    if change.kind == "replace":
        parent[place] = change.value
    elif change.kind == "delete":
        del parent[place]
    elif isinstance(parent, dict):
        parent[change.key] = change.value
    else:
        parent.append(change.value)
    return value
