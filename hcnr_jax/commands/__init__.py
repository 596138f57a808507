"""Runs the subcommands of `hcnr` other than restore, apply, bench and the experiments, one a module."""
