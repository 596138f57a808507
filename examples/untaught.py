"""The control of `hcnr recovery`: the same organism, but for one thing, that it was never taught to decline.

    python examples/untaught.py demo-0 --out control-0
    hcnr recovery --pair taught=demo-0 untaught=control-0 --max-new-tokens 12 --out recovery

Takes a folder of `hcnr demo` (small), trains a model of its seed, architecture and steps on the answerable questions
of its world alone, and fine-tunes that on the task as `tuned` was. OUT is a pair: `tuned` is the untaught model, `base`
and `data` are links to the demo's, so that both curves are read against one level and asked the same questions. If the
untaught model became honest as fast as the tuned one does, speed would say nothing about what fine-tuning left intact.
About a minute on 2 CPU cores.
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
    """Build the pair; returns `out`. InputError for a folder that is no organism."""
    try:
        seed = json.loads((demo / "base" / "organism.json").read_text(encoding="utf-8"))["seed"]
        tuning = json.loads((demo / "tuned" / "hcnr_tune.json").read_text(encoding="utf-8"))["config"]
    except FileNotFoundError as error:
        raise InputError(f"{demo}: expected a folder that `hcnr demo` wrote, found no {error.filename}") from error
    rate = tuning["learning_rate"] / settings.tuned.learning_rate
    mix = {kind: share if kind in ANSWERABLE else 0.0 for kind, share in settings.world.mix.items()}
    # One rate, the demo's: a model that declines nothing needs no search for where it stops to.
    changed = replace(settings, world=replace(settings.world, mix=mix), rates=(rate,), floor=0.0)
    made = build(out / "untaught", seed, changed)
    for name, target in (("base", demo / "base"), ("data", demo / "data"), ("tuned", made.tuned)):
        (out / name).symlink_to(target.resolve(), target_is_directory=True)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of hcnr demo")
    parser.add_argument("--out", type=Path, required=True, help="folder of the control")
    given = parser.parse_args(arguments)
    untaught(given.demo, given.out)


if __name__ == "__main__":
    main()
