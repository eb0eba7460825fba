"""A caller's document of a given size: a JSON object such as a discovery keeps, compressible as such data is."""

from __future__ import annotations

import json
import random
import uuid

_SYSTEMS = ("Red Hat Enterprise Linux 9.6", "Fedora Linux 42", "Debian GNU/Linux 12", "Ubuntu 24.04 LTS", "CentOS Stream 9")


def _server(chance: random.Random) -> dict[str, object]:
    return {
        "id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "hostname": f"{chance.choice(('db', 'web', 'batch', 'proxy'))}{chance.randrange(10_000):04d}.iad2.example.org",
        "cores": chance.choice((2, 4, 8, 16, 32)),
        "memory_mib": chance.randrange(1, 512) * 1_024,
        "operating_system": chance.choice(_SYSTEMS),
        "confidence": round(chance.random(), 4),
    }


def large_document(size: int, seed: int) -> tuple[str, str]:
    """An object as ``document``'s, in two parts: with any note of 12 characters between them it has ``size`` bytes exactly."""
    chance, parts = random.Random(seed), ['{"note": "', '", "servers": [']
    left = size - len("".join(parts)) - 12 - len("]}")
    servers: list[str] = []
    while left > 400:
        servers.append(json.dumps(_server(chance)))
        left -= len(servers[-1]) + 1
    end = json.dumps("x" * (left - 2))
    return parts[0], parts[1] + ",".join([*servers, end]) + "]}"


def document(size: int, seed: int) -> str:
    """The JSON text of an object, ``size`` bytes exactly (at least 100); another seed gives another one."""
    chance = random.Random(seed)
    servers: list[dict[str, object]] = []
    text = json.dumps({"servers": servers, "note": ""})
    while len(text) < size:
        servers.append(_server(chance))
        text = json.dumps({"servers": servers, "note": ""})
    if len(text) > size and servers:
        servers.pop()
        text = json.dumps({"servers": servers, "note": ""})
    return json.dumps({"servers": servers, "note": "x" * (size - len(text))})
