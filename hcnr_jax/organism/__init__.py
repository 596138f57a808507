"""Builds a model organism: a synthetic world, an honest base model trained on it, and a tuned model that bluffs."""
