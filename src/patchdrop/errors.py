"""Define the one family of errors that a user can meet; each is one line: what is wrong, where, and what to do."""


class PatchDropError(Exception):
    """The base class of every error that is the fault of the input, not of the program."""

    exit_code = 3


class UsageError(PatchDropError):
    """A setting, flag or name that does not exist or is out of range."""

    exit_code = 2


class DataError(PatchDropError):
    """A data set, image or table that cannot be used as it is."""


class RunError(PatchDropError):
    """A run folder that is damaged, of another data set, or in use."""


class TrainingError(PatchDropError):
    """Training cannot go on, for example after a loss that is not a number."""


class CollapsedPolicyWarning(UserWarning):
    """The policy gives (nearly) the same mask to every image."""


class RenamedWarning(UserWarning):
    """A name of an earlier version was used; it still works."""


class Interrupted(Exception):
    """A signal asked the work to stop; its state is saved."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def first_line(error: Exception) -> str:
    """Return the first line of another package's error, or the name of its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
