"""Restores any Flax model in one call, from its loss and its params: `restore_params`."""
