"""Asks a model questions: prompts, batches, greedy completions, likelihoods, hidden states, the journal."""
