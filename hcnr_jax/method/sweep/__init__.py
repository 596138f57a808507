"""The sweep over blocks in data-flow order: second moments, corrections and block-wise Fisher scores."""
