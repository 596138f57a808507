"""The model card: metadata that huggingface_hub reads, and a text without the user's own paths."""

import pytest
import yaml
from huggingface_hub import ModelCard

from hcnr_jax.checkpoints.checkpoint import CARD_MARK
from hcnr_jax.evaluate.score.metrics import JSON_FIELDS
from hcnr_jax.report.model_card import Origin, hub_parents, model_card, split_card


@pytest.fixture
def record():
    honesty = {"f1": 0.9, "refusal_delta": 0.8, JSON_FIELDS["over_refusal"]: 0.1, JSON_FIELDS["known_facts"]: None}
    task = {"accuracy": 0.75, "intervals": {"accuracy": {"low": 0.7, "high": 0.8}}}
    scores = {"honesty": {"honesty": honesty}, "task": {"task": task}}
    return {
        "versions": {"hcnr_jax": "1"},
        "config": {"honesty": "/private/secret/h.jsonl", "task": "/private/secret/t.jsonl", "out": "/private/out"},
        "rows": {"honesty": {"count": 128}, "task": {"count": 64}},
        "check": {
            "questions": {"honesty": 100, "task": 50},
            "models": {"BASE": scores, "TUNED": scores, "restored": scores},
            "sentence": "90% is back",
            "from": "held-out rows",
        },
    }


def origin(**changes):
    return Origin(**({"name": "out", "base": "org/base", "tuned": "me/tuned", "is_adapter": False} | changes))


def read(text, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    return ModelCard.load(path)


def test_the_hub_reads_the_results(record, tmp_path):
    card = read(model_card(origin(), record), tmp_path)
    assert card.data.base_model == ["me/tuned"]
    assert card.data.library_name == "transformers"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"f1": 90.0, "delta": 80.0, "over_refusal": 10.0, "accuracy": 75.0}
    assert "75.0 [70, 80]" in card.content


def test_what_tuned_says_of_itself_stays_apart_from_its_results(record, tmp_path):
    head = "license: mit\ntags: [medical]\nmodel-index: [{name: x, results: []}]"
    own = f"---\n{head}\n---\n# My model\n\nIt knows drugs.\n"
    text = model_card(origin(card=own), record)
    card = read(text, tmp_path)
    assert card.data.license == "mit"
    assert card.data.tags[:2] == ["medical", "hcnr"]
    assert card.data.model_name == "out"
    assert "It knows drugs." in text.split(CARD_MARK)[0]
    again = model_card(origin(card=text), record)
    assert again.count(CARD_MARK) == 1, "a restored model that is restored again has one such text"


def test_the_license_is_bases_where_tuned_states_none(record):
    metadata, _ = split_card(model_card(origin(base_card="---\nlicense: apache-2.0\n---\n"), record))
    assert metadata["license"] == "apache-2.0"


def test_an_adapter_names_its_base(record, tmp_path):
    metadata, _ = split_card(model_card(origin(is_adapter=True, base_named="org/other"), record))
    assert metadata["base_model"] == ["org/base"]
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["library_name"] == "peft"
    (tmp_path / "base").mkdir()
    local = origin(is_adapter=True, base=str(tmp_path / "base"), base_named="org/other")
    assert hub_parents(local, {}) == ["org/other"]


def test_no_folder_of_the_user_is_shown(record, tmp_path):
    folder = tmp_path / "private" / "tuned"
    folder.mkdir(parents=True)
    text = model_card(origin(tuned=str(folder), base=str(folder)), record)
    assert "private" not in text
    assert "secret" not in text
    assert "base_model" not in split_card(text)[0]


def test_a_folder_that_peft_wrote_into_the_card_is_left_out(record):
    own = "---\nbase_model: /private/base\ntags: ['base_model:adapter:/private/base', lora]\n---\n# Adapter\n"
    text = model_card(origin(is_adapter=True, base="/private/base", base_named="/private/base", card=own), record)
    metadata, _ = split_card(text)
    assert "base_model" not in metadata and metadata["tags"] == ["lora", "hcnr", "hcnr_jax", "honesty"]


def test_without_a_comparison_the_card_says_so(record):
    del record["check"]
    text = model_card(origin(), record)
    assert "were not compared" in text
    assert "model-index" not in split_card(text)[0]


@pytest.mark.parametrize("text", ["", "# title\n", "---\n: : [\n---\nbody", "---\n- a\n---\nbody"])
def test_a_head_that_cannot_be_read_counts_as_none(text):
    assert split_card(text)[0] == {}


def test_metadata_are_plain_yaml(record):
    head = model_card(origin(), record).split("---\n")[1]
    assert yaml.safe_load(head)["tags"] == ["hcnr", "hcnr_jax", "honesty"]


def test_built_in_questions_are_named_as_such(record):
    text = model_card(origin(is_builtin=True), record)
    assert "built into hcnr_jax" in text
    assert "hcnr restore org/base me/tuned --task t.jsonl --out out" in text
