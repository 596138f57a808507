"""hcnr_jax: give a fine-tuned language model its "I don't know" back."""

__version__ = "0.1.0"
