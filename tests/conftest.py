"""Strict test set-up: 8 simulated devices, strict dtype promotion, no rank promotion, shapes checked at run time."""

import gc
import os
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
