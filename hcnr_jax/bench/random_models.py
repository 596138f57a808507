"""Writes random models as Hugging Face folders, and random rows: files of real sizes without meaning.

Weights come from one pool of normal numbers, which each tensor reads from its own start. A pair of 8B models then needs
no 16 billion drawn numbers. Tensors are made one at a time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from hcnr_jax.bench.model_shapes import SHAPES, spec_of
from hcnr_jax.checkpoints import leaf_shapes, save_new

# A prime, so that the rows of a tensor do not repeat the pool at equal places.
POOL = 16_777_213
SPREAD = 0.02
# Change of the kernels, relative to their spread: far above bfloat16's rounding (1/256), and small for a model.
MOVED = 0.05
SPECIAL = ("<unk>", "<s>", "</s>")
# Words in the rows; larger ids do not occur in them.
WORDS = 2000
COMPLETION_SHARE = 4


class Pair(NamedTuple):
    """Random inputs of a restoration: base, tuned = base + small noise in the kernels, and two files of rows."""

    base: Path
    tuned: Path
    honesty: Path
    task: Path


class RandomLeaf:
    """An array whose values are made when they are read, with the interface that `save_new` needs of a leaf."""

    def __init__(self, path: str, shape: tuple[int, ...], pool: np.ndarray, moved: float) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(np.float32)
        self._pool, self._moved = pool, moved

    def __getitem__(self, layer: int) -> np.ndarray:
        return self._make(self.shape[1:], f"{self.path}/{layer}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._make(self.shape, self.path)

    def _make(self, shape: tuple[int, ...], name: str) -> np.ndarray:
        if self.path.endswith("/scale"):
            return np.ones(shape, np.float32)
        values = SPREAD * self._from(f"{name} base", shape)
        if self._moved:
            values += self._moved * SPREAD * self._from(f"{name} moved", shape)
        return values

    def _from(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        start = zlib.crc32(name.encode()) % len(self._pool)
        values = np.empty(int(np.prod(shape)), np.float32)
        done = 0
        while done < values.size:
            part = self._pool[start : start + values.size - done]
            values[done : done + len(part)] = part
            done, start = done + len(part), 0
        return values.reshape(shape)


def write_model(folder: Path, shape: str, dtype: str, *, seed: int, moved: float = 0.0) -> Path:
    """Write a folder with random weights of a named shape and a word-level tokenizer; return the folder.

    Args:
        folder: the folder to write.
        shape: name of an entry of `SHAPES`.
        dtype: of the stored weights.
        seed: of the weights.
        moved: change of the kernels, relative to their spread.
    """
    spec = spec_of(shape)
    pool = np.random.default_rng(seed).standard_normal(POOL, np.float32)
    leaves: Mapping[Any, Any] = {
        path: RandomLeaf(path, size, pool, moved if path in spec.kernels else 0.0)
        for path, size in leaf_shapes(spec).items()
    }
    tokenizer = write_tokenizer(folder.parent / "tokenizer", spec.vocab_size)
    return save_new(folder, unflatten_dict(leaves, sep="/"), spec, SHAPES[shape], tokenizer, dtype)


def write_pair(folder: Path, shape: str, dtype: str, *, rows: int, tokens: int, seed: int) -> Pair:
    """Write base, tuned, honesty.jsonl and task.jsonl into an existing folder.

    Args:
        folder: the folder, which exists.
        shape: name of an entry of `SHAPES`.
        dtype: of the stored weights.
        rows: rows of each file.
        tokens: tokens of each row.
        seed: of weights and rows.
    """
    rng = np.random.default_rng(seed)
    words = word_count(spec_of(shape).vocab_size)
    files = [write_rows(folder / f"{name}.jsonl", rows, tokens, words, rng) for name in ("honesty", "task")]
    base = write_model(folder / "base", shape, dtype, seed=seed)
    tuned = write_model(folder / "tuned", shape, dtype, seed=seed, moved=MOVED)
    return Pair(base, tuned, files[0], files[1])


def write_rows(path: Path, rows: int, tokens: int, words: int, rng: np.random.Generator) -> Path:
    """Write rows of random words, with begin and end token exactly `tokens` long; a quarter of each is completion.

    Args:
        path: the file to write.
        rows: number of rows.
        tokens: tokens of each row.
        words: number of words of the tokenizer.
        rng: draws the words.
    """
    completion = max(1, tokens // COMPLETION_SHARE)
    lines = []
    for drawn in rng.integers(0, words, (rows, tokens - 2)):
        text = [f"w{word}" for word in drawn]
        split = len(text) - completion
        lines.append(json.dumps({"prompt": " ".join(text[:split]), "completion": " " + " ".join(text[split:])}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def word_count(vocab_size: int) -> int:
    """Return the number of words of the tokenizer."""
    return min(WORDS, vocab_size - len(SPECIAL))


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    """Write a tokenizer of whole words `w0 w1 ...` that puts `<s>` before every text; return the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    names = [*SPECIAL, *(f"w{word}" for word in range(word_count(vocab_size)))]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    text = json.dumps(config | {"unk_token": "<unk>", "clean_up_tokenization_spaces": False}, indent=1)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    return folder
