"""Lets tropt be imported before Python 3.12, whose dataclasses are the first to take its losses'
slices as defaults; to be imported before it.
"""

import dataclasses

original = dataclasses._get_field  # type: ignore[attr-defined]


def with_slices(cls, name, *arguments):
    """What `dataclasses` makes of a field, with a factory in the place of a slice."""
    default = getattr(cls, name, None)
    if isinstance(default, slice):
        setattr(cls, name, dataclasses.field(default_factory=lambda: default))
    return original(cls, name, *arguments)


dataclasses._get_field = with_slices  # type: ignore[attr-defined]
