"""Writes README.md, the model card of a restored model, with metadata as the Hugging Face hub reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hcnr_jax.checkpoints.checkpoint import CARD_MARK
from hcnr_jax.report.before_after_table import COLUMNS, HEADER, comparison_rows, value_of
from hcnr_jax.report.markdown import markdown

PAPER = "https://arxiv.org/abs/2511.12991"
TAGS = ("hcnr", "hcnr_jax", "honesty")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_METRIC_TYPES = {"honesty F1": "f1", "task": "accuracy"}

SAME_FILES = """\
- The questions of the table come from the same files as the rows that the restoration read. Questions of other kinds
  may be answered or declined otherwise.
"""

BUILT_IN = """\
- The honesty questions of the table are built into hcnr_jax. They share no wording and no name with the rows that the
  restoration read, but their kinds. Questions of other kinds may be answered or declined otherwise.
"""

LIMITS = """\
- A phrase detector decides what is a refusal, and answers are compared as text.
- Abilities other than the task were not measured.
- The restored model can still state falsehoods.
"""

UNCHECKED = """\
The three models were not compared when this model was made. `hcnr evaluate` measures honesty and task.
"""


@dataclass(frozen=True)
class Origin:
    """Names what a model card says about the inputs.

    Args:
        name: of the restored model.
        base: BASE as the user named it: a folder or a hub name.
        tuned: TUNED as the user named it.
        is_adapter: whether the output is a LoRA adapter.
        is_builtin: whether BASE wrote the honesty rows, from the built-in questions.
        card: the text of TUNED's own README.md, empty without one.
        base_card: the same of BASE.
        base_named: the name of BASE in an adapter's configuration, if there is one.
    """

    name: str
    base: str
    tuned: str
    is_adapter: bool
    is_builtin: bool = False
    card: str = ""
    base_card: str = ""
    base_named: str | None = None


def model_card(origin: Origin, record: Mapping[str, Any]) -> str:
    """Return the whole text of README.md.

    TUNED's own card keeps its text and its metadata, apart from its results, which are those of another model.

    Args:
        origin: names, and the cards of BASE and TUNED.
        record: the content of hcnr.json.
    """
    own, text = split_card(origin.card)
    base, _ = split_card(origin.base_card)
    metadata = _metadata(origin, own, base, record.get("check"))
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    before = text.split(CARD_MARK)[0].strip()
    return f"---\n{head}---\n\n" + (f"{before}\n\n" if before else "") + f"{CARD_MARK}\n\n" + _body(origin, record)


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Return the metadata at the head of a card, empty where there are none that can be read, and the text below."""
    found = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text, re.DOTALL)
    if found is None:
        return {}, text
    try:
        metadata = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        return {}, text[found.end() :]
    return (metadata if isinstance(metadata, dict) else {}), text[found.end() :]


def _metadata(
    origin: Origin, own: Mapping[str, Any], base: Mapping[str, Any], check: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the metadata: those of TUNED's card, with the entries that the restoration changes."""
    # PEFT writes BASE's folder into a card where BASE is a folder; the hub refuses such names, and they are private.
    metadata = {key: value for key, value in own.items() if key not in ("model-index", "base_model")}
    for key in ("license", "license_name", "license_link", "language"):
        if key in base and key not in metadata:
            metadata[key] = base[key]
    parents = hub_parents(origin, own)
    if parents:
        metadata["base_model"] = parents
        metadata["base_model_relation"] = "adapter" if origin.is_adapter else "finetune"
    metadata["library_name"] = "peft" if origin.is_adapter else "transformers"
    metadata["pipeline_tag"] = "text-generation"
    tags = own.get("tags")
    listed = [str(tag) for tag in tags] if isinstance(tags, list) else []
    kept = [tag for tag in listed if not tag.startswith("base_model:") or is_hub_name(tag.rpartition(":")[2])]
    metadata["tags"] = list(dict.fromkeys([*kept, *TAGS, *(["lora"] if origin.is_adapter else [])]))
    if check is not None:
        metadata["model-index"] = [{"name": origin.name, "results": _results(check)}]
    return metadata


def hub_parents(origin: Origin, own: Mapping[str, Any]) -> list[str]:
    """Return the hub names of the models that this one derives from; folders have none."""
    stated = own.get("base_model")
    stated = stated if isinstance(stated, list) else [stated]
    named = [origin.base, origin.base_named, *stated] if origin.is_adapter else [origin.tuned, *stated, origin.base]
    return [name for name in named if is_hub_name(name)][:1]


def is_hub_name(name: Any) -> bool:
    """Return whether a name has the form of the hub's, and is no folder here."""
    return isinstance(name, str) and _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _results(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the restored model's metrics in the form of a `model-index`, in percent."""
    results = []
    for role, name in (("honesty", "held-out honesty questions"), ("task", "held-out task questions")):
        metrics = []
        for column, (section, _) in COLUMNS.items():
            value, _ = value_of(check["models"]["restored"], column)
            if (section == "task") == (role == "task") and value is not None:
                kind = _METRIC_TYPES.get(column, column.replace(" ", "_").replace("-", "_"))
                metrics.append({"type": kind, "name": f"{column} (percent)", "value": round(100 * value, 1)})
        dataset = {"name": f"{name} ({check['questions'][role]})", "type": "custom"}
        results.append({"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics})
    return results


def _body(origin: Origin, record: Mapping[str, Any]) -> str:
    config, check = record["config"], record.get("check")
    what = "LoRA adapter" if origin.is_adapter else "model"
    base, tuned = _shown(origin.base), _shown(origin.tuned)
    parts = [
        f"# {origin.name}",
        f"This {what} is `{tuned}` after a restoration of its honesty. Fine-tuning had made it answer questions that "
        f"`{base}` declines. hcnr_jax {record['versions']['hcnr_jax']} put neurons that matter for honesty back to "
        f"their values in `{base}`, and corrected them so that the fine-tuned task keeps working.",
        "## Before and after",
        UNCHECKED if check is None else _table(check),
        "## How it was made",
        f"```sh\n{_command(config, base, tuned, is_builtin=origin.is_builtin)}\n```",
        f"The restoration read {record['rows']['honesty']['count']} honesty rows and {record['rows']['task']['count']} "
        f"task rows. `hcnr.json` holds every option, version and hash, and "
        "`hcnr.patch.safetensors` the restored weights. The method is from "
        f"[Fine-Tuned LLMs Know They Don't Know]({PAPER}).",
        "## What this does not show",
        (BUILT_IN if origin.is_builtin else SAME_FILES) + LIMITS,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(check: Mapping[str, Any]) -> str:
    asked = check["questions"]
    return (
        f"Percent, with 95 % intervals, on {asked['honesty']} honesty and {asked['task']} task questions that the "
        f"restoration did not read.\n\n{markdown(HEADER, comparison_rows(check['models']))}\n"
        f"{check['sentence']}.\n\nHonesty F1 is that of refusing the unanswerable questions. Delta is the share of "
        "them refused, minus over-refusal, the share of the answerable questions refused. Known facts and task are "
        "shares answered correctly."
    )


def _shown(name: str) -> str:
    """Return a hub name as it is, and of a folder its last part alone: a card is public."""
    path = Path(name)
    return path.resolve().name if path.exists() else name


def _command(config: Mapping[str, Any], base: str, tuned: str, *, is_builtin: bool) -> str:
    # The rows that BASE wrote are made again by the same command without --honesty.
    given = ("task",) if is_builtin else ("honesty", "task")
    files = " ".join(f"--{name} {Path(config[name]).name}" for name in given)
    return f"hcnr restore {base} {tuned} {files} --out {Path(config['out']).name}"
