"""Secret: a value that does not show itself."""

from __future__ import annotations

from typing import Any, Generic, NoReturn, TypeVar, final

from . import _core

T = TypeVar("T")

_REDACTED = "**********"


@final
class Secret(Generic[T]):
    """Holds a value, and gives it to those who ask by name: reveal().

    Printed, formatted or logged it is asterisks. It cannot be pickled, copied, hashed or compared
    for order; == of texts or bytes takes the same time wherever they differ, of other values it is
    their own. The value is not copied: made in a scope, it is where the scope put it.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: T) -> None:
        if hasattr(self, "_value"):
            raise AttributeError("a Secret does not change")
        object.__setattr__(self, "_value", value)

    def reveal(self) -> T:
        """The value itself."""
        value: T = self._value  # type: ignore[attr-defined]
        return value

    def __eq__(self, other: object) -> bool:
        """With another Secret, or with a plain value."""
        if type(other) is Secret:
            other = other.reveal()
        equal: bool = _core._equal(self.reveal(), other)
        return equal

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Secret('{_REDACTED}')"

    def __str__(self) -> str:
        return _REDACTED

    def __format__(self, specification: str) -> str:
        return _REDACTED

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __reduce_ex__(self, *_: Any) -> NoReturn:
        raise TypeError("a Secret cannot be copied or pickled")

    __reduce__ = __copy__ = __deepcopy__ = __getstate__ = __reduce_ex__
