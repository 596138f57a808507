"""Runs the subcommands of `hcnr` other than restore, apply, bench and the experiments, each in its own module."""
