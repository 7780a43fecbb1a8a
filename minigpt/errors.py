"""The error that a command shows without a traceback."""


class UserError(ValueError):
    """Something that the user can fix; the message says what to change."""
