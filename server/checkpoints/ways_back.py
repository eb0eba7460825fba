"""What a recovery wants to know of a flow's checkpoints, in its own words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from server.checkpoints.opening import Opening
from server.statemachine.checkpoint import Unreadable
from server.statemachine.errors import KeyUnavailable
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.rungs import Copy
from server.statemachine.values import FlowKey

_KINDS: Mapping[Unreadable, FindingKind] = MappingProxyType(
    {
        Unreadable.SEAL: FindingKind.CHECKPOINT_UNREADABLE,
        Unreadable.CONTENT: FindingKind.CHECKPOINT_UNREADABLE,
        Unreadable.KEY_MISSING: FindingKind.KEY_MISSING,
        Unreadable.KEY_UNAVAILABLE: FindingKind.KEY_MISSING,
        Unreadable.PART_MISSING: FindingKind.CHECKPOINT_INCOMPLETE,
    }
)
# Rows that nobody can have written: of these a recovery only needs to know that they are of no use.
_NONSENSE = (KeyError, ValueError, TypeError, OverflowError)


class WaysBack:
    """Tells of a flow's checkpoints, whatever state they are in."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    async def newest_readable(self, key: FlowKey) -> Copy | str:
        """The flow's newest checkpoint that opens, or why there is none."""
        try:
            found = await self._opening.newest_readable(key)
        except KeyUnavailable as error:
            return str(error)
        except _NONSENSE as error:
            return f"what is stored of the checkpoints cannot be read: {error!r}"
        if found is None:
            return "the flow has no checkpoint that opens"
        checkpoint, copy = found
        return Copy(checkpoint.checkpoint_id, copy.flow, copy.documents)

    async def unreadable(self, key: FlowKey) -> list[Finding]:
        """What is wrong with those of the flow's checkpoints that do not open."""
        try:
            found = await self._opening.unreadable(key)
        except _NONSENSE as error:
            text = f"what is stored of the checkpoints cannot be read: {error!r}"
            return [Finding(FindingKind.CHECKPOINT_UNREADABLE, text, recovery_only=True)]
        return [
            Finding(
                _KINDS[cause],
                f"checkpoint {checkpoint.checkpoint_id} of revision {checkpoint.revision}: {cause.value}",
                revision=checkpoint.revision,
                checkpoint_id=checkpoint.checkpoint_id,
                recovery_only=True,
            )
            for checkpoint, cause in found
        ]
