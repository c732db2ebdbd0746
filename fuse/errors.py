"""The one exception that speaks to users."""


class FuseError(Exception):
    """A mistake that the user can mend; its message names the key, the value, what was expected and what to do."""
