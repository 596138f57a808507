"""Describes the model families: the attributes of `config.json` each handles, its block recipe and tensor names."""
