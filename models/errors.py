"""The one error that means "the request is wrong": shown to the user as it stands, exit status 2."""


class UserError(ValueError):
    """One or two lines: what is wrong with the request and how to mend it."""
