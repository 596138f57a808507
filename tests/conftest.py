"""Strict test set-up: 8 simulated devices, strict dtype promotion, no rank promotion, shapes checked at run time."""

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The suite's time is compilation. Workers and the processes that tests start share their compiled programs, and LLVM
# does not optimise programs that run once on a few numbers. Both halve the suite's processor time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

install_import_hook("hcnr_jax", "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def _release_compiled_programs() -> Iterator[None]:
    """Drop the programs that a module compiled: other modules hardly share any, and they would pile up to gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
    from hcnr_jax.runtime.memory import release_freed_memory  # after the import hook

    release_freed_memory()


# What the folder of HCNR_TEST_DATA holds.
REAL_DATA = ("data", "models")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the number of broken inputs that tests/fuzz generates."""
    parser.addoption("--fuzz", type=int, default=0, help="broken inputs of each kind that tests/fuzz tries")
    parser.addoption("--wide", action="store_true", help="also run the cases of WIDE, which repeat a property")


# Cases that repeat a property for one more family, framework or mesh. `pytest --wide` runs them.
WIDE = re.compile(
    r"models/test_families.py::("
    r"test_padded_batches_equal_pytorch_at_real_tokens\[.*right"
    r"|test_(blocks_in_sequence|low_precision|padded_batches)\w*\[.*(gemma2|olmo2|smollm|granite|glm4|ministral)"
    r"|test_float64)"
    r"|restoration/test_families.py::("
    r"test_against_float64\[(gemma2|olmo2|smollm3|glm4|ministral3)"
    r"|test_streamed\[(gemma3_text|phi3)|test_on_a_mesh\[(gemma3_text|olmo2)|test_an_adapter\w*\[gemma3)"
    r"|one_call/test_parity.py::\w*\[(two_sided-local|paper)"
    r"|one_call/test_restore_params.py::("
    r"test_every_local_objective\w*\[(none|paper|exact)-nnx|test_linen_and_nnx_agree\[.*(none|paper|exact)"
    r"|test_scanned_and_unrolled\w*\[(scanned-local|unrolled-propagated)"
    r"|test_a_mesh_of_eight\w*\[(linen-local|nnx-propagated))"
    r"|restoration/test_mesh.py::test_any_mesh\w*\[(data=8|model=8)\]"
    r"|restoration/test_grid.py::test_a_grid_is_the_single_runs\[bfloat16"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases of WIDE unless --wide is given."""
    if config.getoption("--wide"):
        return
    wide = [item for item in items if WIDE.search(item.nodeid)]
    config.hook.pytest_deselected(items=wide)
    items[:] = [item for item in items if not WIDE.search(item.nodeid)]


def pytest_configure(config: pytest.Config) -> None:
    """Stop with one error where HCNR_TEST_DATA names a folder that is not the one of real files."""
    folder = os.environ.get("HCNR_TEST_DATA")
    lacking = [name for name in REAL_DATA if folder and not (Path(folder) / name).is_dir()]
    if lacking:
        raise pytest.UsageError(
            f"HCNR_TEST_DATA={folder}: expected a folder that holds data and models; it lacks "
            f"{' and '.join(lacking)}. Name the right folder, or unset the variable to skip the tests "
            "that read it"
        )


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real benchmark files and checkpoints named by HCNR_TEST_DATA; the test is skipped without it."""
    folder = os.environ.get("HCNR_TEST_DATA")
    if not folder:
        pytest.skip("HCNR_TEST_DATA is not set: real benchmark files and checkpoints are not at hand")
    return Path(folder)
