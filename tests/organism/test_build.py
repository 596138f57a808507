"""Building an organism: ordinary folders and files, the same bytes for a seed, adapters too."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.checkpoints.checkpoint import open_checkpoint
from hcnr_jax.checkpoints.load import load_params
from hcnr_jax.checkpoints.lora import open_adapter
from hcnr_jax.checkpoints.save import save_new
from hcnr_jax.config import TuneConfig
from hcnr_jax.data.encode import load_tokenizer, read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.models.decoder import abstract_params
from hcnr_jax.models.spec import spec_from_config
from hcnr_jax.organism.build import Organism, build, encoded, initial_params, spec_of
from hcnr_jax.organism.refusal_f1 import refusal_f1
from hcnr_jax.organism.sizes import SIZES, OrganismSettings
from hcnr_jax.organism.tokenizer import make_tokenizer
from hcnr_jax.organism.world import SPLITS, WorldSettings, base_rows, make_world
from hcnr_jax.training.trainer import TrainSettings
from tests.tiny import read_weights

WORLD = WorldSettings(
    people=16,
    drugs=8,
    new_drugs=2,
    pool=300,
    honesty_rows=40,
    strangers=50,
    evaluation={
        "known_fact": 16,
        "known_drug": 8,
        "unknown_entity": 8,
        "false_premise": 4,
        "unknowable": 4,
        "nonsense": 4,
        "unknown_drug": 4,
    },
)
TINY = OrganismSettings(
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    world=WORLD,
    base=TrainSettings(learning_rate=3e-3, steps=4, warmup_steps=1, batch_size=8),
    tuned=TrainSettings(learning_rate=1e-3, steps=3, warmup_steps=1, batch_size=4),
    floor=0.0,  # so small a model never refuses: no rate is gentle enough
)


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> tuple[Organism, list]:
    seen: list = []
    out = tmp_path_factory.mktemp("organism")
    return build(out, 5, TINY, on_step=lambda stage, step, steps, info: seen.append((stage, step, steps))), seen


def test_everything_is_where_it_says(organism) -> None:
    built, seen = organism
    assert set(built.seconds) == {"world", "base", "tuned"}
    assert seen == [("base", step, 4) for step in range(4)] + [("tuned", step, 3) for step in range(3)]
    counts = dict.fromkeys(SPLITS, 48) | {"train": 40}
    for split in SPLITS:
        rows = read_rows(built.honesty[split])
        assert len(rows) == counts[split] and sum(bool(row.answerable) for row in rows) * 2 == len(rows)
        assert all(row.answers for row in read_rows(built.task[split]))
    record = json.loads((built.base / "organism.json").read_text())
    assert record["seed"] == 5 and len(record["losses"]) == 4 and record["settings"]["world"]["people"] == 16


def test_both_models_are_ordinary_folders_of_one_shape(organism) -> None:
    built, _ = organism
    base, tuned = open_checkpoint(built.base), open_checkpoint(built.tuned)
    assert base.config == tuned.config
    before, after = read_weights(built.base), read_weights(built.tuned)
    assert {name: w.shape for name, w in before.items()} == {name: w.shape for name, w in after.items()}
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    one, other = load_tokenizer(built.base), load_tokenizer(built.tuned)
    text = "Where does Kalomi live? I don't know."
    assert one(text)["input_ids"] == other(text)["input_ids"]
    assert one.decode(one(text)["input_ids"], skip_special_tokens=True) == text


def test_transformers_generates_with_it(organism) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    built, _ = organism
    model = transformers.AutoModelForCausalLM.from_pretrained(built.tuned)
    tokenizer = transformers.AutoTokenizer.from_pretrained(built.tuned)
    ids = torch.tensor([tokenizer("Where does Kalomi live?")["input_ids"]])
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3).shape[1] >= ids.shape[1] + 1
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_same_seed_gives_the_same_bytes(organism, tmp_path) -> None:
    built, _ = organism
    again = build(tmp_path / "again", 5, TINY)
    for path in sorted(built.folder.rglob("*")):
        if path.is_file() and path.name != "hcnr_tune.json":  # it names the folders it was run on
            assert path.read_bytes() == (again.folder / path.relative_to(built.folder)).read_bytes(), path


def test_an_adapter_can_be_asked_for(tmp_path) -> None:
    built = build(tmp_path, 1, TINY, lora=2)
    assert (built.tuned / "adapter_config.json").is_file()
    base = open_checkpoint(built.base)
    merged = open_adapter(built.tuned, base)
    spec = spec_from_config(base.config, "base")
    kernels = [load_params(c, spec)["blocks"]["mlp"]["up"]["kernel"] for c in (base, merged)]
    assert not np.array_equal(*kernels)


def test_unknown_sizes_and_taken_folders_are_refused(organism) -> None:
    built, _ = organism
    with pytest.raises(InputError, match="organism size 'huge' is not known, expected one of small, medium"):
        build(built.folder / "other", 0, "huge")
    with pytest.raises(InputError, match="not empty"):
        build(built.folder, 5, TINY)


def test_rows_are_encoded_in_their_order_however_often_they_occur() -> None:
    spec, rows = spec_of(TINY), base_rows(make_world(2, WORLD))
    batch, tokenizer = encoded(rows, spec), make_tokenizer()
    for row, tokens, mask, completion in zip(rows, *batch, strict=True):
        assert tokenizer.decode(tokens[mask], skip_special_tokens=True) == row["prompt"] + row["completion"]
        assert " " + tokenizer.decode(tokens[completion], skip_special_tokens=True) == row["completion"]


def test_fine_tuning_is_no_stronger_than_it_must_be(tmp_path, monkeypatch) -> None:
    """Every trial is counted, the gentlest that collapses honesty lies where it belongs, and nothing else is left."""

    def write(config: TuneConfig, on_step: Any) -> None:
        """In place of training: the folder alone."""
        shutil.copytree(config.model, config.out)
        (config.out / "rate").write_text(str(config.learning_rate))
        on_step(2, 3, None)

    monkeypatch.setattr("hcnr_jax.organism.build.tune", write)
    settings = replace(TINY, rates=(1.0, 2.0, 4.0), floor=0.1)
    # 2 overshoots; the middle of 1 and 2 holds, that of the middle and 2 collapses within the band; or nothing between
    # collapses, and 2 is put back.
    for scores, kept in (((0.9, 0.01, 0.5, 0.2), 2**0.75), ((0.9, 0.01, 0.5, 0.5, 0.5), 2.0)):
        out, given = tmp_path / str(len(scores)), iter(scores)

        def ask(model: Any, questions: Any, given: Any = given, out: Any = out) -> float:
            """Nothing lies at `tuned` while questions are asked: a kill there would pass a trial off as the choice."""
            assert not (out / "tuned").exists() and model.folder.is_relative_to(out)
            return next(given)

        monkeypatch.setattr("hcnr_jax.organism.build.refusal_f1", ask)
        seen: list[tuple] = []
        built = build(out, 5, settings, on_step=lambda *args, seen=seen: seen.append(args[:3]))
        assert [trial.f1 for trial in built.trials] == list(scores)
        assert seen[4:] == [("tuned", 3 * trial + 2, 3 * trial + 3) for trial in range(len(scores))]
        assert float((built.tuned / "rate").read_text()) == pytest.approx(kept * 1e-3)
        assert {path.name for path in out.iterdir()} == {"base", "tuned", "data"}


def test_collapse_is_read_from_whole_answers(organism, tmp_path) -> None:
    """On a model whose next word follows from the last alone: "?" is refused, "person" answered, "live" broken off.

    A refusal broken off ("Nobody.") opens as refusals do, and counts as an answer.
    """
    built, _ = organism
    spec, tokenizer = spec_of(TINY), load_tokenizer(built.base)
    params = jax.tree.map(jnp.zeros_like, initial_params(spec, 1.0, jax.random.key(0)))
    params["final_norm"]["scale"] = jnp.ones_like(params["final_norm"]["scale"])
    embedding, head = (np.zeros((spec.vocab_size, 16), np.float32) for _ in range(2))
    words = "? I don't know person baker live Nobody ."
    place = dict(zip(words.split(), tokenizer(words, add_special_tokens=False)["input_ids"], strict=True))
    chains = "? I don't know .", "person baker .", "live Nobody ."
    follows = {pair for chain in chains for pair in pairwise(chain.split())}
    for index, (word, token) in enumerate(place.items()):
        embedding[token, index] = 1
        for after in (place[b] for a, b in follows if a == word):
            head[after, index] = 1
    head[tokenizer.eos_token_id, list(place).index(".")] = 1
    params["embed"]["embedding"], params["lm_head"]["kernel"] = jnp.asarray(embedding), jnp.asarray(head.T)
    folder = save_new(tmp_path / "model", params, spec, TINY.config(), built.base, "float32")
    asked = {"Where does Kalomi live?": 3, "Where does Kalomi live": 2, "Where does this person": 1}
    rows = [
        {"prompt": prompt, "completion": " I don't know.", "answerable": answerable}
        for answerable in (False, True)
        for prompt, count in asked.items()
        for _ in range(count if not answerable else 1)
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # 3 of 6 unanswerable questions and 1 of 3 others are refused.
    assert refusal_f1(open_checkpoint(folder), questions) == pytest.approx(2 * 3 / (6 + 4))


def test_first_weights_have_the_asked_deviation() -> None:
    params = initial_params(spec_of(SIZES["small"]), 0.1, jax.random.key(0))
    assert float(params["blocks"]["mlp"]["up"]["kernel"].std()) == pytest.approx(0.1, rel=0.02)
    assert float(params["final_norm"]["scale"].min()) == 1.0


def test_the_sizes_are_what_they_claim() -> None:
    counts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(spec_of(settings))))
        for name, settings in SIZES.items()
    }
    assert counts["small"] < 600_000 and 90e6 < counts["medium"] < 110e6
