"""The one family of errors a user can meet: one line that says what, where and what to do."""


class PatchDropError(Exception):
    """Base of every error that is the input's fault, not the program's."""

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
    """A name of an earlier version was used; it goes on working."""


class Interrupted(Exception):
    """Work was asked to stop by a signal; its state is saved."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def first_line(error: Exception) -> str:
    """What another package's error says, in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
