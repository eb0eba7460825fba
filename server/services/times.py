"""Times and spans as messages, to the microsecond."""

from __future__ import annotations

from datetime import datetime, timedelta

from google.protobuf import duration_pb2, timestamp_pb2


def timestamp(time: datetime) -> timestamp_pb2.Timestamp:
    """The time, to the microsecond."""
    found = timestamp_pb2.Timestamp()
    write_timestamp(found, time)
    return found


def seconds(number: float) -> duration_pb2.Duration:
    """So many seconds, to the microsecond."""
    return duration(timedelta(seconds=number))


def maybe_timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    """The time, if there is one."""
    return None if time is None else timestamp(time)


def duration(span: timedelta) -> duration_pb2.Duration:
    """The span, to the microsecond."""
    return duration_pb2.Duration(seconds=span.days * 86_400 + span.seconds, nanos=span.microseconds * 1000)


def write_timestamp(target: timestamp_pb2.Timestamp, time: datetime) -> None:
    """Write the time into ``target``, which is part of a larger message: made by itself it would have to be copied there."""
    target.seconds = int(time.timestamp())
    target.nanos = time.microsecond * 1000
