"""Times contenders that compute the same result, and reads the memory of their programs from XLA.

Contenders are compiled separately and called once before the timing. Every round calls each contender once in a rotated
order, and the median over rounds counts, so that a slow phase of the machine slows all contenders alike. Memory is what
XLA reports for a program beside its arguments.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from hcnr_jax.runtime.memory import free_bytes

# Seconds that the rounds of one race may take. The first round is always finished.
BUDGET = 60.0
# Share of the free memory that a contender's program may need; a larger program is not run.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Program:
    """A contender compiled for its arguments. peak_bytes: temporaries and outputs, without the arguments."""

    call: Callable[[], Any]
    compile_seconds: float
    peak_bytes: int
    flops: float | None

    @property
    def fits(self) -> bool:
        """Whether the program fits in the memory that is free now."""
        return self.peak_bytes <= MEMORY_SHARE * free_bytes()


@dataclass(frozen=True)
class Seconds:
    """Seconds of one call: the median over `count` rounds, the fastest and the slowest."""

    median: float
    low: float
    high: float
    count: int


def compile_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Trace and compile `function` for its arguments, which the program keeps; nothing is run."""
    program = compile_each(function, {"": arguments})
    return dataclasses.replace(program, call=lambda: program.call()[""])


def compile_each(function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]]) -> Program:
    """Compile one function for several sets of arguments, once for each shape; the call returns {name: result}.

    The peak is that of the largest call; compile seconds and FLOPs are sums over all programs.
    """
    programs: dict[Any, jax.stages.Compiled] = {}
    start = time.perf_counter()
    for arguments in calls.values():
        if (key := _shapes(arguments)) not in programs:
            programs[key] = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    found = [programs[_shapes(arguments)] for arguments in calls.values()]
    counts = [flops_of(compiled) for compiled in found]

    def call() -> dict[str, Any]:
        return {name: compiled(*calls[name]) for name, compiled in zip(calls, found, strict=True)}

    flops = None if None in counts else sum(filter(None, counts))
    return Program(call, seconds, max(map(_peak, found)), flops)


def _shapes(arguments: Any) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple(jax.typeof(leaf) for leaf in leaves)


def _peak(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    return int(memory.temp_size_in_bytes + memory.output_size_in_bytes) if memory is not None else 0


def flops_of(compiled: jax.stages.Compiled) -> float | None:
    """Return XLA's count of FLOPs, which counts a loop's body once; None where the backend has no count."""
    analysis: Any = compiled.cost_analysis()
    found = analysis[0] if isinstance(analysis, list) and analysis else analysis
    return float(found["flops"]) if found and "flops" in found else None


def race(contenders: Mapping[str, Callable[[], Any]], repeats: int, budget: float = BUDGET) -> dict[str, Seconds]:
    """Time each contender: one call without measurement, then at most `repeats` rounds within `budget` seconds."""
    names = list(contenders)
    for name in names:
        _timed(contenders[name])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for turn in range(repeats):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            seconds[name].append(_timed(contenders[name]))
        if time.perf_counter() - start > budget:
            break
    return {name: Seconds(statistics.median(s), min(s), max(s), len(s)) for name, s in seconds.items()}


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
