"""Progress reports over one client stream."""

from __future__ import annotations

import asyncio
import itertools
import math
import time

from flowledger.v1 import flow_service_pb2

from benchmarks.generator import CallFailed, Target
from benchmarks.processor import spending
from benchmarks.requests import STREAM_REPORTS
from benchmarks.sample import Measure, Sample
from benchmarks.service import Service
from benchmarks.wire import OK, Connection, connect, message

PATIENCE = 120.0  # seconds: gRPC lets a sender run far ahead, and all of it is read before the answer


def stream_measure(service: Service) -> Measure:
    """The measure ``stream_progress``: each round streams to another flow."""
    flows = itertools.cycle(service.running[0].flow_ids)
    target = service.serving.target("StreamProgress", service.running)

    async def run(seconds: float) -> Sample:
        return await _stream_progress(target, next(flows), seconds)

    return Measure("stream_progress", 1, run)


async def _stream_progress(target: Target, flow: str, seconds: float) -> Sample:
    """As many reports as the stream's flow control lets through; the sample's calls are what the service says it received."""
    connection = await connect(target.address, target.path, target.metadata[0])
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    answers: list[bytes] = []

    def ended(status: str, text: str) -> None:
        if status == OK:
            answered.set_result(answers[0])
        else:
            answered.set_exception(CallFailed(target.path, status, text))
        connection.roomier.set()  # whoever waits for room need not wait any more

    with spending(target.trees) as spent:
        stream = connection.client_stream(answers.append, ended)
        opening = flow_service_pb2.StreamProgressRequest(flow_id=flow).SerializeToString()  # a field; the next one is its report
        connection.send(stream, message(opening + STREAM_REPORTS[0][5:]))
        await _send_reports(connection, stream, time.perf_counter() + seconds)
        if not answered.done():
            connection.send(stream, b"", last=True)
            connection.flush()
        answer = flow_service_pb2.StreamProgressResponse.FromString(await asyncio.wait_for(answered, PATIENCE))
    connection.close()
    calls = answer.received_count
    cpu = tuple((name, used / calls * 1e6) for name, used in spent.cpu.items())
    return Sample(calls, spent.wall, math.nan, math.nan, cpu)


async def _send_reports(connection: Connection, stream: int, deadline: float) -> None:
    reports = itertools.cycle(STREAM_REPORTS)
    largest = max(len(report) for report in STREAM_REPORTS)
    while time.perf_counter() < deadline and connection.is_open(stream):
        connection.roomier.clear()
        fitting = connection.room(stream) // largest
        if fitting:
            connection.send(stream, b"".join(next(reports) for _ in range(fitting)))
        else:
            connection.flush()
            await connection.roomier.wait()
