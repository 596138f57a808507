"""`hcnr bench` in this process at the smallest size, and the pieces only its longer sections use."""

import io
import json
from typing import get_args

import jax
import numpy as np
import pytest
from rich.console import Console

from hcnr_jax.bench import run
from hcnr_jax.bench.measurement import WIDTH, Measurement, table
from hcnr_jax.bench.model_shapes import SHAPES, spec_of
from hcnr_jax.bench.random_models import MOVED, write_pair
from hcnr_jax.bench.sections.restore import restore_config
from hcnr_jax.bench.timed_restoration import peak_bytes, run_process
from hcnr_jax.checkpoints import load_params, open_checkpoint
from hcnr_jax.config import BenchConfig
from hcnr_jax.data import encode_rows, load_tokenizer, read_rows
from hcnr_jax.errors import RunError
from hcnr_jax.models.families.llama import LLAMA
from tests.restoration.worlds import call, text_of

KEYS = {"name", "seconds", "against", "against_seconds", "ratio", "memory_bytes", "against_memory_bytes",
        "memory_ratio", "floor_seconds", "share_of_floor", "compile_seconds"}  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    jax.config.update("jax_disable_most_optimizations", True)  # nothing here is about speed, and compiling is slow
    options = ["--shape", "tiny", "--rows", 4, "--tokens", 8, "--repeats", 1, "--json", path]
    ended = call("bench", "--sections", "fisher,compensate,files", *options)
    jax.config.update("jax_disable_most_optimizations", False)
    assert ended.code == 0, ended.err
    for words in ("plain backward", "sequential", "load_params", "GFLOP/s"):
        assert words in ended.err
    return json.loads(path.read_text())


def test_the_record_says_what_was_run_and_where(record) -> None:
    assert record["command"] == (
        "hcnr bench --shape tiny --sections fisher,compensate,files --rows 4 --tokens 8 --repeats 1"
    )
    assert record["device"]["platform"] == "cpu" and record["cores"] >= 1 and record["dtype"] == "float32"
    assert {"jax", "hcnr_jax", "python", "device"} <= set(record["versions"])
    assert all(rate > 0 for rate in record["rates"].values())
    assert list(record["sections"]) == ["files", "fisher", "compensate"]
    for rows in record["sections"].values():
        assert rows and all(set(row) >= KEYS and row["seconds"] > 0 for row in rows)


def test_fisher_rows(record) -> None:
    rows = {(row["name"], row["against"]): row for row in record["sections"]["fisher"]}
    assert {name for name, _ in rows} >= {"input scores, remat", "input scores", "output scores"}
    assert {other for _, other in rows} == {
        "plain backward", "plain backward, remat", "vmap(grad)", "scan of grad"}  # fmt: skip
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["seconds"] / row["against_seconds"])
        assert row["memory_bytes"] > 0 and row["floor_seconds"] > 0 and row["compile_seconds"] > 0


def test_corrections_are_right_and_the_joint_one_is_better(record) -> None:
    rows = {row["name"]: row for row in record["sections"]["compensate"]}
    assert set(rows) == {"exact moments", "paper moments", "two_sided moments", "exact dual", "exact free",
                         "paper free", "two_sided dual", "two_sided free"}  # fmt: skip
    assert all(row["error"] < 1e-3 and row["against"] == "sequential" for row in rows.values())
    for name in ("exact moments", "exact dual", "exact free"):
        assert rows[name]["d_hon"] < rows[name]["its d_hon"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shape", "llama-9"], ["--shape", "llama-9", "100m"]),
        (["--sections", "fisher,fishes"], ["--sections fisher,fishes", "'fishes'", "compensate"]),
        (["--sections", ","], ["--sections ,", "expected all, or names"]),
        (["--scratch", "no-such-folder"], ["--scratch no-such-folder"]),
        (["--tokens", "4"], ["--tokens: expected greater than or equal to 8"]),
    ],
)
def test_wrong_use_names_the_option(options, words) -> None:
    ended = call("bench", *options)
    assert ended.code == 2 and all(word in text_of(ended.err) for word in words)


def test_a_record_is_never_written_over(tmp_path) -> None:
    (tmp_path / "bench.json").write_text("mine")
    ended = call("bench", "--sections", "fisher", "--json", tmp_path / "bench.json")
    assert ended.code == 2 and "--json" in ended.err and (tmp_path / "bench.json").read_text() == "mine"


def test_sections_and_shapes() -> None:
    assert run.chosen_sections("all") == list(run.SECTIONS)
    assert run.chosen_sections("compensate, fisher") == ["fisher", "compensate"]
    assert set(SHAPES) == set(get_args(BenchConfig.model_fields["shape"].annotation))
    assert run.command_of(BenchConfig(microbatch=2, json="x")) == "hcnr bench --microbatch 2"


def test_ratios_of_a_row() -> None:
    row = Measurement("ours", 2.0, "theirs", 8.0, 0.5, 10, 40)
    assert (row.ratio, row.memory_ratio, row.share) == (0.25, 0.25, 0.25)
    assert Measurement("alone", 1.0).ratio is None and Measurement("alone", 1.0).to_json()["share_of_floor"] is None


def headings(rows) -> str:
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(table("title", rows))
    return " ".join(console.export_text().split())


def test_columns_are_named_by_the_contenders() -> None:
    notes = {"GB/s": 1.0, "its GB/s": 2.0}
    one = headings([Measurement("load", 2.0, "plain read", 8.0, 0.5, 10, 40, notes=notes)])
    for words in ("plain read s", "hcnr", "plain read memory", "0.25x"):
        assert all(word in one.split() for word in words.split())
    two = [Measurement("a", 2.0, "first", 4.0, notes=notes), Measurement("b", 3.0, "second", 4.0, notes=notes)]
    several = headings(two)
    assert all(word in several.split() for word in ("hcnr", "first", "second", "contender"))
    assert not {"ours", "its"} & {*one.split(), *several.split()}
    assert two[0].to_json()["its GB/s"] == 2.0


def test_random_folders_can_be_restored(tmp_path) -> None:
    pair = write_pair(tmp_path, "tiny", "float32", rows=3, tokens=16, seed=1)
    spec = spec_of("tiny")
    base, tuned = (load_params(open_checkpoint(folder), spec) for folder in (pair.base, pair.tuned))
    for path in LLAMA.kernels:
        _, part, name, _ = path.split("/")
        old, new = (np.asarray(params["blocks"][part][name]["kernel"]) for params in (base, tuned))
        assert (new - old).std() == pytest.approx(MOVED * old.std(), rel=0.1)
        assert abs(np.corrcoef(old[0].ravel(), old[1].ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(base["embed"]["embedding"], tuned["embed"]["embedding"])
    tokenizer = load_tokenizer(pair.tuned)
    for example in encode_rows(read_rows(pair.honesty), tokenizer, 512):
        assert len(example.tokens) == 16 and example.completion_start == 11 and 0 not in example.tokens
    config = restore_config("paper", pair, tmp_path / "out", rows=3, seed=0)
    assert config.compensation == "paper" and config.samples == 3


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RunError, match="ended with code 3: no luck"):
        run_process(["python3", "-c", "import sys; sys.stderr.write('no luck'); sys.exit(3)"])
    assert peak_bytes() > 1e6
