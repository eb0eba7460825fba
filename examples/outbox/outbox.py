"""Everything that happens to a tenant's flows, forwarded to a file, each event exactly once: nothing but grpc and the generated modules.

python examples/outbox/outbox.py 127.0.0.1:50051 events.jsonl --account UUID --engagement UUID

Each line holds an event and the token that goes on after it, so both are written by one write or not at all. Whoever forwards to something
else does the same there: event and token in one transaction, or in one message.
"""

import argparse
import fcntl
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import BinaryIO

import grpc
from flowledger.v1 import flow_service_pb2 as pb
from flowledger.v1 import flow_service_pb2_grpc
from google.protobuf.json_format import MessageToDict

RESUMABLE = (pb.WATCH_END_REASON_MAX_AGE, pb.WATCH_END_REASON_DRAINING)
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
PAUSE_SECONDS = 0.2
# A server that vanished is noticed within seconds, and looked for again soon.
OPTIONS = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000), ("grpc.max_reconnect_backoff_ms", 2_000)]


def claim(file: BinaryIO) -> None:
    """Make the file ours alone, and cut off its last line when that is not whole."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another outbox writes to {file.name}: two of them would write everything twice")
    file.truncate(_last_line(file)[0])


def token_of(file: BinaryIO) -> str:
    """The token in the last line; empty when there is none."""
    line = _last_line(file)[1]
    return str(json.loads(line)["resume_token"]) if line else ""


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """Where the last whole line ends, and the line."""
    size, found = file.seek(0, os.SEEK_END), b""
    while found.count(b"\n") < 2 and len(found) < size:
        start = max(0, size - 2 * len(found) - 4096)
        file.seek(start)
        found = file.read(size - start)
    whole = found[: found.rfind(b"\n") + 1]
    return size - len(found) + len(whole), whole[whole.rfind(b"\n", 0, -1) + 1 :]


def forward(service: flow_service_pb2_grpc.FlowServiceStub, caller: tuple[tuple[str, str], ...], filter: str, file: BinaryIO) -> str:
    """Append what comes, until the stream ends; why it did."""
    token = token_of(file)
    start = pb.WATCH_FLOWS_START_UNSPECIFIED if token else pb.WATCH_FLOWS_START_BEGINNING
    for message in service.WatchFlows(pb.WatchFlowsRequest(filter=filter, start=start, resume_token=token), metadata=caller):
        if message.HasField("change"):
            change = MessageToDict(message.change, preserving_proto_field_name=True)
            line = json.dumps({**change, "resume_token": message.resume_token}, separators=(",", ":"))
            file.write(line.encode() + b"\n")
            file.flush()
        elif message.HasField("heartbeat"):
            os.fsync(file.fileno())
        elif message.HasField("end"):
            os.fsync(file.fileno())
            if message.end.reason not in RESUMABLE:
                sys.exit(f"the watch cannot go on: {message.end.message}")
            return str(message.end.message)
    return "the stream broke off"


def main() -> None:
    """Forward for ever; ends only when the service says that there is no going on."""
    asked = argparse.ArgumentParser()
    asked.add_argument("address")
    asked.add_argument("file", type=Path)
    asked.add_argument("--account", required=True)
    asked.add_argument("--engagement", required=True)
    asked.add_argument("--filter", default="", help='which events, for example: type = migration AND labels.wave = "3"')
    given = asked.parse_args()
    caller = (("x-client-account-id", given.account), ("x-engagement-id", given.engagement), ("x-user-id", "outbox"))
    with given.file.open("a+b") as file, grpc.insecure_channel(given.address, options=OPTIONS) as channel:
        claim(file)
        service = flow_service_pb2_grpc.FlowServiceStub(channel)
        while True:
            try:
                why = forward(service, caller, given.filter, file)
            except grpc.RpcError as error:
                if error.code() not in PASSING:
                    sys.exit(f"refused: {error.code().name}: {error.details()}")
                why = f"{error.code().name}: {error.details()}"
            print(f"resuming: {why}", file=sys.stderr, flush=True)
            time.sleep(PAUSE_SECONDS * (0.5 + random.random()))


if __name__ == "__main__":
    main()
