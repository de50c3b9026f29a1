"""What functions of a user's own classes return, checked at every call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def check_returned(cls: type, name: str, check: Callable[..., None]) -> None:
    """Check what a function of a class returns; the package's own classes are proved by tests.

    Args:
        cls: the class, as it is made.
        name: of the function; one that is inherited was checked where it was written.
        check: (object, what was returned, *arguments) -> None, or raises.
    """
    function = vars(cls).get(name)
    own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    if own or not callable(function):
        return

    @functools.wraps(function)
    def checked(self: Any, *args: Any, **words: Any) -> Any:
        returned = function(self, *args, **words)
        check(self, returned, *args)
        return returned

    setattr(cls, name, checked)
