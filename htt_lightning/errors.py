"""The one exception for everything a user can mend."""


class HTTError(Exception):
    """Bad input: the message names the file, key or argument at fault and says what to do.

    The command line prints the message alone and exits with status 1.
    """
