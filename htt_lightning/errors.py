"""The one exception for everything a user can mend."""

from collections.abc import Sequence


class HTTError(Exception):
    """Bad input: the message names the file, key or argument at fault and says what to do.

    The command line prints the message alone and exits with status 1.

    Args:
        message: What is wrong.
        faults: One sentence for each of several faults, where the message names only some of them.

    Attributes:
        faults: All of them, or the message alone.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults) or (message,)
