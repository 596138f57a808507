"""Adapters: equal to merged weights, frozen weights frozen, and the folder read alike by PEFT and by our own reader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.checkpoints.checkpoint import open_checkpoint
from hcnr_jax.checkpoints.load import load_params
from hcnr_jax.checkpoints.lora import open_adapter
from hcnr_jax.data.encode import Batch
from hcnr_jax.errors import InputError
from hcnr_jax.models.decoder import Decoder
from hcnr_jax.models.families.llama import LLAMA
from hcnr_jax.models.spec import spec_from_config
from hcnr_jax.training.lora import (
    adapted,
    init_adapters,
    joined,
    lora_objective,
    merge_adapters,
    save_adapter,
)
from hcnr_jax.training.objectives import logits_of, sft
from hcnr_jax.training.trainer import TrainSettings, train
from tests.tiny import write_tiny_model

SCALE = 1.5
TOKENS = jnp.array([[1, 5, 9, 13, 2], [1, 7, 7, 30, 2]], jnp.int32)


ROWS = Batch(TOKENS, jnp.ones_like(TOKENS, bool), jnp.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]], bool))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    folder = write_tiny_model(tmp_path_factory.mktemp("lora") / "base", "qwen2")
    checkpoint = open_checkpoint(folder)
    spec = spec_from_config(checkpoint.config, str(folder))
    return folder, checkpoint, spec, load_params(checkpoint, spec)


def moved(params: dict, rank: int = 3, kernels: tuple[str, ...] = LLAMA.kernels) -> dict:
    """Adapters after some training: no zero leaf."""
    adapters = init_adapters(params, rank, jax.random.key(1), kernels)
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), adapters)


def adapted_logits(spec, params: dict, adapters: dict, remat: bool = True) -> jax.Array:
    with adapted(SCALE):
        return Decoder(spec, remat=remat).apply({"params": joined(params, adapters)}, TOKENS, None)


@pytest.mark.parametrize("remat", [True, False])
def test_adapter_equals_merged_weights(base, remat: bool) -> None:
    _, _, spec, params = base
    adapters = moved(params)
    merged = merge_adapters(params, adapters, SCALE)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    expected = Decoder(spec).apply({"params": merged}, TOKENS, None)
    np.testing.assert_allclose(adapted_logits(spec, params, adapters, remat), expected, atol=2e-5)
    assert float(jnp.max(jnp.abs(expected - Decoder(spec).apply({"params": params}, TOKENS, None)))) > 0.1


def test_fresh_adapters_change_nothing_and_lie_on_the_chosen_kernels(base) -> None:
    _, _, spec, params = base
    adapters = init_adapters(params, 2, jax.random.key(0), LLAMA.kernels[:2])
    assert set(adapters["blocks"]) == {"attention"} and set(adapters["blocks"]["attention"]) == {"q", "k"}
    assert adapters["blocks"]["attention"]["k"]["lora_b"].shape == (2, 2, 16)
    np.testing.assert_array_equal(
        adapted_logits(spec, params, adapters), Decoder(spec).apply({"params": params}, TOKENS, None)
    )


def test_gradient_equals_the_chain_rule_through_merged_weights(base) -> None:
    _, _, spec, params = base
    adapters, model, key = moved(params), Decoder(spec), jax.random.key(0)
    loss = lora_objective(sft, model, params, SCALE)
    ours = jax.grad(lambda a: loss(a, ROWS, key)[0])(adapters)
    plain = sft(logits_of(model))
    theirs = jax.grad(lambda a: plain(merge_adapters(params, a, SCALE), ROWS, key)[0])(adapters)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), ours, theirs)


def test_training_lowers_the_loss_over_bfloat16_frozen_weights(base) -> None:
    _, _, spec, params = base
    frozen = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    loss = lora_objective(sft, Decoder(spec), frozen, SCALE)
    settings = TrainSettings(learning_rate=0.02, steps=12, batch_size=2)
    adapters, log = train(
        loss,
        init_adapters(params, 2, jax.random.key(0), LLAMA.kernels),
        lambda step: ROWS,
        settings=settings,
        key=jax.random.key(0),
    )
    assert log.losses[-1] < 0.5 * log.losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(adapters))


def test_folder_is_read_by_peft_and_by_our_reader_as_the_same_model(base, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    folder, checkpoint, spec, params = base
    adapters = moved(params)
    out = save_adapter(tmp_path / "adapter", adapters, alpha=SCALE * 3, base_folder=folder)
    expected = np.asarray(adapted_logits(spec, params, adapters))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, out)
    with torch.no_grad():
        logits = model(torch.tensor(np.array(TOKENS), dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    merged = load_params(open_adapter(out, checkpoint), spec)
    ours = merge_adapters(params, adapters, SCALE)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), merged, ours)


@pytest.mark.parametrize("rank", [0, 17])
def test_an_impossible_rank_is_refused(base, rank: int) -> None:
    *_, params = base
    with pytest.raises(InputError, match=rf"--lora {rank}: expected a rank from 1 to 16, the smaller side of"):
        init_adapters(params, rank, jax.random.key(0), LLAMA.kernels[1:2])


def test_an_existing_folder_is_not_overwritten(base, tmp_path) -> None:
    folder, *_, params = base
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        save_adapter(tmp_path / "taken", moved(params), 3.0, base_folder=folder)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]
