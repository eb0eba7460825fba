"""Calls Flowledger: retries that are safe, watches that last, commits that are not lost.

`Client` for threads, `AsyncClient` for asyncio; requests and responses are the contract's own messages, in `flowledger.v1`.
"""

from flowledger_client.aio_client import AsyncClient, AsyncPhaseWork
from flowledger_client.aio_watch import AsyncWatch
from flowledger_client.caller import Caller
from flowledger_client.channel import channel_options, service_config
from flowledger_client.client import Client, PhaseWork
from flowledger_client.errors import (
    AlreadyExists,
    ConcurrentModification,
    DataLost,
    DeadlineExceeded,
    FlowledgerError,
    Forbidden,
    InternalError,
    InvalidRequest,
    LimitReached,
    NotFound,
    OutOfRange,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
    WatchBroken,
    error_of,
)
from flowledger_client.patience import Patience
from flowledger_client.watch import Watch
from flowledger_client.work import PhaseFailed, PhaseLost, PhaseUnknown

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "AsyncPhaseWork",
    "AsyncWatch",
    "Caller",
    "Client",
    "ConcurrentModification",
    "DataLost",
    "DeadlineExceeded",
    "FlowledgerError",
    "Forbidden",
    "InternalError",
    "InvalidRequest",
    "LimitReached",
    "NotFound",
    "OutOfRange",
    "Patience",
    "PhaseFailed",
    "PhaseLost",
    "PhaseUnknown",
    "PhaseWork",
    "PreconditionFailed",
    "Unauthenticated",
    "Unavailable",
    "Watch",
    "WatchBroken",
    "channel_options",
    "error_of",
    "service_config",
]
