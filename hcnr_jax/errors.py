"""The two ways a run ends early: the user can mend it (exit code 2), or the run itself failed (exit code 1)."""


class InputError(ValueError):
    """Wrong use or bad input: the message names the file, tensor, row or option, what was found and what to do."""


class RunError(RuntimeError):
    """A fault during the run, such as a factorisation that failed: the message says the cause and the remedy."""
