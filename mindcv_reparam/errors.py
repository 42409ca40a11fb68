"""The one exception that a user can cause."""


class UserError(Exception):
    """A failure the user can mend: one line that says what was wrong and what to do; the scripts exit with status 2."""
