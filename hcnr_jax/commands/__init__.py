"""Runs the subcommands demo, data, diagnose, evaluate, probe and tune.

The others are in `hcnr_jax.restoration.run` (restore, apply), `hcnr_jax.experiments` (compare, ablate, sweep, recovery)
and `hcnr_jax.bench.run`.
"""
