"""The commands other than restore: each module is one subcommand of `hcnr`."""
