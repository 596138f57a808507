"""Compares methods and settings over many pairs of models: compare, ablate, sweep and recovery.

`engine` makes, asks and records every setting on every pair; `pair_session` holds one pair in memory. `summary` turns
the records into rows of a table, `pair_bootstrap` adds intervals, and `result_folder` writes everything.
"""
