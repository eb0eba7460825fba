"""How a connection behaves: what gRPC is told of retries, of several servers, and of servers that vanish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from ipaddress import ip_address
from pkgutil import iter_modules

import flowledger.v1

# A full flow is four documents of up to 4 MiB; gRPC's own limit is 4 MiB a message.
MESSAGE_BYTES = 32 * 1024 * 1024
Option = tuple[str, "int | str"]


def target_of(addresses: str | Sequence[str]) -> str:
    """What gRPC calls a target: one `host:port`, a target as it is (`dns:///flowledger.internal:50051`), or several `ip:port`.

    Raises ValueError for several of which one is no IP address with a port, or of both kinds.
    """
    if isinstance(addresses, str):
        return addresses
    if len(addresses) == 1:
        return addresses[0]
    kinds = {ip_address(address.rpartition(":")[0].strip("[]")).version for address in addresses}
    if len(kinds) != 1:
        raise ValueError("several addresses must be all IPv4 or all IPv6; for names, use one dns:/// target that has all of them")
    return f"ipv{kinds.pop()}:{','.join(addresses)}"


def service_config() -> str:
    """What gRPC does by itself: calls wait for a connection, are dealt out among servers, and are tried again when one is UNAVAILABLE.

    That is safe for changes too, as each carries a request_id. Streams are not tried again here: whoever resumes them knows how far they
    came.
    """
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    unary = [{"service": service, "method": method} for service, method in _unary_methods()]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": [{}], "waitForReady": True}, {"name": unary, "waitForReady": True, "retryPolicy": retry}],
        }
    )


def channel_options(keepalive_seconds: float = 10.0, answer_seconds: float = 5.0) -> tuple[Option, ...]:
    """The options of a channel. A server permits a ping each 5 seconds, and ends connections that are pinged more often."""
    return (
        ("grpc.service_config", service_config()),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        # A server that vanished without a word is noticed while a call or a stream is open.
        ("grpc.keepalive_time_ms", int(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(answer_seconds * 1000)),
        ("grpc.http2.ping_timeout_ms", int(answer_seconds * 1000)),
        ("grpc.http2.max_pings_without_data", 0),  # no bound: an idle watch has no data
        # It is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A connection of one's own: clients that share one end up all at the same worker.
        ("grpc.use_local_subchannel_pool", 1),
    )


def _unary_methods() -> Iterator[tuple[str, str]]:
    """Every RPC of the contract that takes one message and answers with one."""
    for module in iter_modules(flowledger.v1.__path__):
        if module.name.endswith("_service_pb2"):
            for service in import_module(f"flowledger.v1.{module.name}").DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    if not (method.client_streaming or method.server_streaming):
                        yield service.full_name, method.name
