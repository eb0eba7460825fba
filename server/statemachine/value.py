"""What a value is: slots, equality by its fields, a hash to match, and nobody assigns to it.

The last is proved by mypy and costs nothing while the service runs. ``dataclasses`` would make sure of it at run time too, by an
``object.__setattr__`` for each field of each value that is made: a value of 17 fields takes 2.7 us instead of 0.23, and a commit makes
some twenty of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses

    def dataclass(*, frozen, slots, order=False):
        """A class decorator: ``dataclasses.dataclass`` without the check at run time."""

        def made(cls):
            return dataclasses.dataclass(slots=slots, order=order, unsafe_hash=frozen and "__hash__" not in vars(cls))(cls)

        return made


__all__ = ["dataclass"]
