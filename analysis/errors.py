"""The one error that means "the request is wrong". Analysis imports no other package, so it has its own."""


class UserError(ValueError):
    """One or two lines: what is wrong with the request or the table and how to mend it."""
