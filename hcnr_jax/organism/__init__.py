"""A model organism: a synthetic world, an honest base model trained on it, and a fine-tuned one that bluffs."""
