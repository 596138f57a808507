"""Errors that end a run early: wrong input (exit code 2), a fault during the run (1), and a signal (128 + number)."""


class InputError(ValueError):
    """Wrong use or bad input. The message names the file, tensor, row or option, the value found and the remedy."""


class RunError(RuntimeError):
    """A fault during the run, such as a failed factorisation. The message names the cause and the remedy."""


class NumericalError(RunError):
    """A numerical failure, such as a training loss that is not finite.

    An experiment over many settings records the setting as failed and goes on.
    """


class Stopped(KeyboardInterrupt):
    """A signal stopped the run at a clean point. `code`: the exit code, 128 + the signal's number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
