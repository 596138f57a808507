"""Builds the control of `hcnr recovery`: an organism that was never taught to decline.

    python examples/untaught.py demo-0 --out control-0
    hcnr recovery --pair taught=demo-0 untaught=control-0 --max-new-tokens 12 --out recovery

It reads a folder of `hcnr demo` (small) and trains a model with the same seed, architecture and steps, on the
answerable questions of the world alone. That model is then fine-tuned on the task as `tuned` was. OUT is a pair:
`tuned` is the untaught model; `base` and `data` are links to the demo's, so that both recovery curves use the same
questions. If the untaught model learned honesty as fast as the tuned model, speed would not show that fine-tuning left
honesty intact. The script takes about a minute on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hcnr_jax.errors import InputError
from hcnr_jax.organism.build import build
from hcnr_jax.organism.sizes import SIZES, OrganismSettings
from hcnr_jax.organism.world import ANSWERABLE


def untaught(demo: Path, out: Path, settings: OrganismSettings = SIZES["small"]) -> Path:
    """Build the pair and return `out`. InputError for a folder that is no organism."""
    try:
        seed = json.loads((demo / "base" / "organism.json").read_text(encoding="utf-8"))["seed"]
        tuning = json.loads((demo / "tuned" / "hcnr_tune.json").read_text(encoding="utf-8"))["config"]
    except FileNotFoundError as error:
        raise InputError(f"{demo}: expected a folder that `hcnr demo` wrote, found no {error.filename}") from error
    rate = tuning["learning_rate"] / settings.tuned.learning_rate
    mix = {kind: share if kind in ANSWERABLE else 0.0 for kind, share in settings.world.mix.items()}
    # Only the demo's rate: a model that never declines needs no search for the rate at which it stops.
    changed = replace(settings, world=replace(settings.world, mix=mix), rates=(rate,), floor=0.0)
    made = build(out / "untaught", seed, changed)
    for name, target in (("base", demo / "base"), ("data", demo / "data"), ("tuned", made.tuned)):
        (out / name).symlink_to(target.resolve(), target_is_directory=True)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and build the pair."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of hcnr demo")
    parser.add_argument("--out", type=Path, required=True, help="folder of the control")
    given = parser.parse_args(arguments)
    untaught(given.demo, given.out)


if __name__ == "__main__":
    main()
