"""Model families: which `config.json` attributes each handles, its block recipe and its tensor names."""
