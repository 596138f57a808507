"""Loads a tokenizer from a folder, and finds the special tokens that it adds to a text."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from hcnr_jax.errors import InputError

# Importing transformers takes seconds, so that the type of its tokenizers is not named here.
Tokenizer: TypeAlias = Any

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_FILES = (*_VOCABULARIES, "tokenizer_config.json")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the Hugging Face tokenizer of a local folder; nothing is downloaded, and no code of the folder is run.

    Raises:
        InputError: the folder is missing, holds no tokenizer files, or transformers cannot read them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder with a tokenizer, found {'a file' if folder.exists() else 'nothing'}"
        )
    if not any((folder / name).is_file() for name in _FILES):
        raise InputError(
            f"{folder}: holds no tokenizer (none of {', '.join(_FILES)}); copy the tokenizer files of the model it "
            "came from"
        )
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            f"{folder}: there is no tokenizer.json (nor {', '.join(_VOCABULARIES[1:])}): tokenizer_config.json alone "
            "has no vocabulary; copy it from the model it came from"
        )
    try:
        tokenizer = _class_of(folder).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # A broken configuration may show when the tokenizer is first used.
        tokenizer.decode(token_ids(tokenizer, "a b"), skip_special_tokens=True)
        special_ids(tokenizer)
        return tokenizer
    except Exception as error:  # transformers and tokenizers raise every kind here, bare Exception included
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {cause}); copy the tokenizer files "
            "again from the model it came from"
        ) from error


# The classes of tokenizers that tokenizer.json describes alone, and the model types for which AutoTokenizer keeps them.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_PLAIN_FAMILIES = ("llama",)


def _class_of(folder: Path) -> Any:
    """Return the class that reads the tokenizer of a folder.

    This is AutoTokenizer, or the class that AutoTokenizer chooses for a folder that needs nothing but tokenizer.json.
    Importing AutoTokenizer imports PyTorch where that is installed, which takes two seconds.
    """
    try:
        own, model = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("tokenizer_config.json", "config.json")
        )
        plain = own.get("tokenizer_class") in _PLAIN_CLASSES and "auto_map" not in own
        plain = plain and model.get("model_type") in _PLAIN_FAMILIES and (folder / "tokenizer.json").is_file()
    except (OSError, ValueError, AttributeError):
        plain = False
    with _without_advice():
        if plain:
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
        from transformers import AutoTokenizer

        return AutoTokenizer


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Import transformers without its advice to install PyTorch, which hcnr_jax does not need."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def row_style(tokenizer: Tokenizer | None) -> Literal["plain", "chat"]:
    """Return the format of rows for a model: chat if its tokenizer has a chat template, else plain."""
    return "chat" if getattr(tokenizer, "chat_template", None) else "plain"


class Added(NamedTuple):
    """The ids that a tokenizer adds before and after a text by default, such as a begin token."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def added_tokens(tokenizer: Tokenizer) -> Added:
    """Find the ids that `tokenizer(text)` adds, by a comparison with the ids without special tokens."""
    bare = token_ids(tokenizer, "a", special=False)
    full = token_ids(tokenizer, "a")
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return Added(full[:start], full[start + len(bare) :])
    # With special tokens, this tokenizer encodes the text itself differently: no added id can be told apart.
    return Added((), ())


def token_ids(tokenizer: Tokenizer, text: str, special: bool = True) -> tuple[int, ...]:
    """Encode `text` without a cut or padding; `special` adds the default special tokens."""
    # `verbose=False` silences the warning of a text over the tokenizer's maximum, which `encode_rows` cuts later.
    encoded = tokenizer(text, add_special_tokens=special, padding=False, truncation=False, verbose=False)
    return tuple(int(token) for token in encoded["input_ids"])


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of all special tokens: the named ones (begin, end, pad) and others, such as ends of turns."""
    marked = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return frozenset(marked | set(tokenizer.all_special_ids))


def tokenizer_name(tokenizer: Tokenizer) -> str:
    """Return the folder that a tokenizer was read from, for messages."""
    return str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
