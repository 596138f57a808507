"""Writes tensors as a Hugging Face folder with the config, the tokenizer and the shards of BASE."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

from hcnr_jax.checkpoints.checkpoint import CARD, INDEX, Checkpoint
from hcnr_jax.checkpoints.foreign.tensors import ForeignTensors
from hcnr_jax.checkpoints.safetensors_file import DTYPES, ShardInfo, encode_header
from hcnr_jax.checkpoints.save import write_shards
from hcnr_jax.runtime.files import staged_folder

_CONFIG_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_model(base: Checkpoint, tensors: ForeignTensors, out: str | Path, source: Path) -> Path:
    """Write a model with BASE's files and other tensors, in the dtypes of those tensors.

    BASE's model card is left out, because it describes BASE. So are tensors that BASE stores and a model of its config
    does not need, such as the copy of a tied embedding.

    Args:
        base: BASE, which gives config, tokenizer and the division into files.
        tensors: maps every tensor name of the model to its values.
        out: the folder to write, which does not exist yet or is empty.
        source: the folder that the tensors are read from, which must not be written to.

    Raises:
        InputError: `out` cannot be used, or the disk failed or is full. Nothing is left behind.
    """
    shards = tuple(found for shard in base.shards if (found := _shard_of(shard, tensors)).tensors)
    infos = {info.name: info for shard in shards for info in shard.tensors}
    template = Checkpoint(base.folder, base.config, shards, infos)
    total = sum(info.nbytes for info in infos.values())
    with staged_folder(out, [*base.sources, source], needed_bytes=total) as stage:
        for name, path in base.companions().items():
            if name not in (CARD, INDEX, "config.json"):
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, stage / name)
        write_shards(template, stage, tensors, [shard.name for shard in shards])
        _write_json(stage / "config.json", _config(base, tensors))
        if len(shards) > 1:
            weight_map = {info.name: shard.name for shard in shards for info in shard.tensors}
            _write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return Path(out).expanduser().resolve()


def _shard_of(shard: ShardInfo, tensors: ForeignTensors) -> ShardInfo:
    """Return a shard of the same tensors in the dtypes of `tensors`."""
    infos, start = [], 0
    for info in (info for info in shard.tensors if info.name in tensors):
        dtype = tensors.dtype(info.name)
        end = start + info.nbytes // info.numpy_dtype.itemsize * DTYPES[dtype].itemsize
        infos.append(replace(info, dtype=dtype, start=start, end=end))
        start = end
    layout = {info.name: (info.dtype, info.shape) for info in infos}
    metadata = {"format": "pt"}
    return replace(shard, tensors=tuple(infos), metadata=metadata, header=encode_header(layout, metadata))


def _config(base: Checkpoint, tensors: ForeignTensors) -> dict[str, object]:
    """Return BASE's config with the dtype of most tensors, under the key that the config already uses."""
    key = "dtype" if "dtype" in base.config and "torch_dtype" not in base.config else "torch_dtype"
    most = Counter(tensors.dtype(name) for name in tensors).most_common(1)[0][0]
    return {**base.config, key: _CONFIG_DTYPES[most]}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
