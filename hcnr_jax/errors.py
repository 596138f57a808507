"""The ways a run ends early: the user can mend it (exit code 2), the run itself failed (1), a signal stopped it."""


class InputError(ValueError):
    """Wrong use or bad input: the message names the file, tensor, row or option, what was found and what to do."""


class RunError(RuntimeError):
    """A fault during the run, such as a factorisation that failed: the message says the cause and the remedy."""


class NumericalError(RunError):
    """A computation whose numbers broke down, such as a training whose loss is not finite: of an experiment that tries
    settings, one that failed."""


class Stopped(KeyboardInterrupt):
    """Stopped by a signal at a clean point. `code`: the exit code, 128 + the signal's number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
