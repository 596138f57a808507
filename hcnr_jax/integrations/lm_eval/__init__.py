"""Holds the task files of EleutherAI's lm-eval: YAML that lm-eval reads, and the functions it calls in `utils.py`."""
