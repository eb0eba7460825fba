"""The gRPC server itself: how it listens, and how it ends without losing a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from enum import Enum, unique

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.repository.commits import Commits
from server.services.boundary import Boundary
from server.services.health import Health
from server.services.reflection import add_reflection
from server.settings import Settings

# gRPC ends calls that have arrived and were not taken yet with CANCELLED when it closes, which a client takes for final: for this
# long they are still taken, and held to be told to go elsewhere.
REFUSING_SECONDS = 0.25
# Part of the drain in which balancers are waited for that ask for health now and then: they send calls here until they have heard.
HEARING_PART = 0.5
# So many calls may wait to be taken.
PENDING_CALLS = 20_000


@unique
class Port(Enum):
    """Whether a server has its port for itself."""

    OWN = "own"
    # Other processes of the same service listen there too.
    SHARED = "shared"


def channel_options(settings: Settings, port: Port = Port.OWN) -> list[tuple[str, int]]:
    """How gRPC behaves on the server's side of a connection."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Two servers on one port share its connections without a word: only workers may.
        ("grpc.so_reuseport", 1 if port is Port.SHARED else 0),
        # Of calls that come all at once, as when every stream comes back after a restart, gRPC ends those beyond a thousand with CANCELLED.
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
        # A peer that vanished from an idle stream is noticed after about ten seconds.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        # Clients may ping an idle watch as often as every five seconds.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


async def listen(
    stack: AsyncExitStack,
    settings: Settings,
    shared: Port,
    handlers: Sequence[grpc.GenericRpcHandler],
    boundary: Boundary,
    health: Health,
    drain: Callable[[], None],
    commits: Commits,
    names: Sequence[str],
) -> int:
    """The port where calls for those services are taken until the stack is taken down. Raises OSError when it is taken."""
    server = grpc.aio.server(options=channel_options(settings, shared))
    server.add_generic_rpc_handlers(tuple(handlers))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    add_reflection(server, [*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name])
    port = _bound(server, settings)
    await server.start()
    loop = asyncio.get_running_loop()

    async def stop() -> None:
        ending = loop.time() + settings.drain_seconds
        drain()
        await health.drain(settings.drain_seconds * HEARING_PART)
        await asyncio.sleep(min(REFUSING_SECONDS, max(0.0, ending - loop.time())))
        closing = asyncio.create_task(server.stop(max(0.0, ending - loop.time())))
        await asyncio.sleep(0.0)  # gRPC has begun to close once the task has run
        boundary.close()
        health.close()
        await closing
        await commits.close(max(0.0, ending - loop.time()))

    stack.push_async_callback(stop)
    return port


def _bound(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: is another server there? Set FLOWLEDGER_PORT") from error
    return int(port)
