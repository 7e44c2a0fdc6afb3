"""``Shared``: the base of objects that a process has once, such as a cache, a source, a backend or an API client.

Frameworks copy settings deeply, with the objects in them (``dataclasses.asdict``, pydantic, dask). A second cache with
the same locks and connections would be wrong, and no other process can use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Shared"]


class Shared:
    """An object whose copy and deep copy are the object itself, and which cannot be pickled."""

    __slots__ = ()

    def __copy__(self) -> Self:
        """Return the object itself."""
        return self

    def __deepcopy__(self, _: object) -> Self:
        """Return the object itself."""
        return self

    def __reduce__(self) -> NoReturn:
        """Raise ``TypeError`` with the remedy."""
        message = (
            f"cannot pickle {type(self).__name__}: its locks and connections belong to this process; pass the"
            " settings, and make a TokenCache of them in each process"
        )
        raise TypeError(message)
