"""The server's source as syntax trees, and the rules of DESIGN section 2 over them: each returns sentences about what breaks it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What each room, and each module that stands alone, may import of the server. `statemachine <- repository <- services <- app <- cli`.
ROOMS: dict[str, frozenset[str]] = {
    "__init__": frozenset(),
    "statemachine": frozenset({"statemachine"}),
    "repository": frozenset({"repository", "statemachine"}),
    "services": frozenset({"services", "checkpoints", "operations", "rescue", "repository", "statemachine", "wakeups", "cache"}),
    "operations": frozenset({"repository", "statemachine"}),
    "rescue": frozenset({"operations", "repository", "statemachine"}),
    # Sealed copies: what seals sees nothing, what is stored sees no keys, and this is where the two meet.
    "vault": frozenset(),
    "checkpoints": frozenset({"checkpoints", "operations", "repository", "statemachine", "vault"}),
    "alarm": frozenset({"repository", "statemachine"}),
    "lookout": frozenset({"repository", "statemachine"}),
    "breaker": frozenset(),
    "redis_link": frozenset(),
    "cache": frozenset({"cache", "repository", "statemachine", "breaker", "redis_link"}),
    "wakeups": frozenset({"wakeups", "statemachine", "breaker", "redis_link"}),
    "settings": frozenset({"vault"}),  # what keys look like
    "log": frozenset(),
    "metrics": frozenset(),
    "programs": frozenset(),
    "sweeper": frozenset({"statemachine"}),  # does jobs; what they are is not its business
    "upkeep": frozenset({"repository", "statemachine"}),  # jobs; the sweeper's way in, as services are the callers'
    "compacting": frozenset({"repository", "statemachine", "signing"}),  # the command's way in to what the sweeper does
    "signing": frozenset(),  # keys for others to be handed; sees nobody
    "keeping": frozenset(  # composes, for app
        {
            "services",
            "checkpoints",
            "repository",
            "statemachine",
            "settings",
            "alarm",
            "lookout",
            "signing",
            "sweeper",
            "upkeep",
            "compacting",
        }
    ),
    "cluster": frozenset({"programs"}),
    "embedded": frozenset({"cluster", "programs"}),
    "listening": frozenset({"services", "repository", "settings"}),  # the gRPC server; app puts in what it serves
    "app": frozenset(
        {
            "listening",
            "services",
            "checkpoints",
            "repository",
            "statemachine",
            "alarm",
            "lookout",
            "rescue",
            "cache",
            "metrics",
            "vault",
            "wakeups",
            "breaker",
            "redis_link",
            "settings",
            "log",
            "embedded",
            "compacting",
            "keeping",
        },
    ),
    "workers": frozenset(),
    # A client like any other, that happens to come with the service: it knows the contract and nothing of what is behind it.
    "console": frozenset({"console"}),
    "cli": frozenset({"app", "listening", "workers", "settings", "log", "embedded", "repository", "statemachine", "vault"}),
    "__main__": frozenset({"cli", "console"}),
}

# Deviations from ROOMS, each with its reason.
ALLOWED: dict[tuple[str, str], str] = {
    ("repository/commits.py", "cache"): "a commit is built on the newest head known, and the heads live in the cache",
}

# What a room may import from elsewhere, when the list is short enough to be read aloud.
PURE = frozenset(
    {"__future__", "collections", "dataclasses", "datetime", "enum", "hashlib", "json", "math", "orjson", "re", "types", "typing", "uuid"}
)
# What the operator's commands are made of: the contract and its client, and what shows things on a terminal.
CLIENT = frozenset(
    {"flowledger", "flowledger_client", "google", "grpc", "grpc_health", "rich", "typer", "server", *sys.stdlib_module_names}
)
FORBIDDEN: dict[str, frozenset[str]] = {
    "repository": frozenset({"grpc", "grpc_status", "grpc_health", "grpc_reflection", "flowledger", "google"}),
    "services": frozenset({"sqlalchemy", "asyncpg", "redis", "alembic", "psycopg"}),
}
CLOCKS = frozenset({"now", "utcnow", "today", "time", "monotonic", "perf_counter", "time_ns"})
DICE = frozenset({"uuid1", "uuid4", "uuid6", "uuid7", "token_bytes", "urandom", "random", "randint", "choice"})
DOORS = frozenset({"open", "print", "input", "exec", "eval", "__import__"})

# Where the environment may be read, and why.
ENVIRONMENT: dict[str, str] = {
    "settings.py": "the one door to the environment",
    "__init__.py": "gRPC reads its fork support when it begins, before there are settings; it is set here and nothing is read",
    "workers.py": "workers inherit everything: their settings, and what Python and gRPC are told",
    "programs.py": "PostgreSQL's programs inherit PATH and LD_LIBRARY_PATH, and nothing else",
}
# Who may catch everything, how often at most, and why.
CATCH_ALLS: dict[str, tuple[int, str]] = {
    "services/boundary.py": (4, "one for each kind of call: nothing may pass the boundary as it is"),
    "repository/commits.py": (
        3,
        "the lane that carries commits is a supervised loop: neither a faulty batch nor a faulty flow or answer in it may stop it",
    ),
    "alarm.py": (1, "an alert must not make the operation fail that raised it, whatever is the matter with the database"),
    "sweeper.py": (2, "a supervised loop: neither one job's trouble nor one tenant's may stop the others"),
    "cache/redis_views.py": (1, "a supervised loop: one view that cannot be shared must not stop the others"),
    "services/tail.py": (1, "the read that many streams wait for hands every error to each of them"),
    "services/watch.py": (1, "the sweep is a supervised loop: a look that fails must not be the last"),
    "repository/gathered.py": (2, "the loop that carries reads hands every error to the callers it belongs to, and to nobody else"),
}
# asyncpg commits a statement outside a transaction by itself, so whoever can send one commits.
DRIVER_CALLS = frozenset({"execute", "executemany", "fetch", "fetchrow", "fetchval", "transaction", "copy_records_to_table"})
# schema.py: migrations, under their lock; notifications.py: a connection that only listens.
DRIVERS = frozenset({"repository/database.py", "repository/schema.py", "repository/notifications.py"})


@dataclass(frozen=True, slots=True)
class Module:
    """One file: its path below ``server/`` and its tree."""

    path: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder, or the name of a module that stands alone."""
        return self.path.partition("/")[0].removesuffix(".py")


def parsed(path: str, text: str) -> Module:
    """The module that ``text`` would be at ``path``."""
    return Module(path, ast.parse(text))


def modules() -> list[Module]:
    """Every module of the server."""
    top = ROOT / "server"
    return [parsed(path.relative_to(top).as_posix(), path.read_text("utf-8")) for path in sorted(top.rglob("*.py"))]


def imported(module: Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, wherever in the file it stands."""
    package = ["server", *module.path.split("/")[:-1]]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = ".".join([*package[: len(package) - node.level + 1], *([source] if source else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def rooms(module: Module) -> list[str]:
    """Imports that go against the direction of the rooms."""
    if module.room not in ROOMS:
        return [f"{module.path}: the room {module.room!r} is not in ROOMS: say what it may see"]
    found = []
    for line, name in imported(module):
        parts = name.split(".")
        if parts[0] != "server" or len(parts) < 2:
            continue
        room = parts[1]
        if room not in ROOMS[module.room] and (module.path, room) not in ALLOWED:
            found.append(f"{module.path}:{line} imports {name}: {module.room} may not see {room}")
    return found


def foreign(module: Module) -> list[str]:
    """Imports from outside that the room must not have."""
    found = []
    for line, name in imported(module):
        top = name.split(".")[0]
        if module.room == "statemachine" and top not in PURE and top != "server":
            found.append(f"{module.path}:{line} imports {name}: statemachine sees only {', '.join(sorted(PURE))}")
        if module.room == "console" and top not in CLIENT:
            found.append(f"{module.path}:{line} imports {name}: the console is a client, on a terminal")
        if top in FORBIDDEN.get(module.room, ()):
            found.append(f"{module.path}:{line} imports {name}: not in {module.room}")
        if top == "redis" and module.room not in ("cache", "wakeups", "redis_link"):
            found.append(f"{module.path}:{line} imports {name}: Redis is for cache and wakeups")
    return found


def purity(module: Module) -> list[str]:
    """What statemachine does that is not a function of its arguments."""
    if module.room != "statemachine":
        return []
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"{module.path}:{node.lineno} is async")
        elif isinstance(node, ast.Call):
            name = _called(node)
            if name in CLOCKS or name in DICE or name in DOORS:
                found.append(f"{module.path}:{node.lineno} calls {name}(): a clock, an id or a file is an argument")
    return found


def aborts(module: Module) -> list[str]:
    """Ends of a call outside the boundary."""
    if module.path in {"services/boundary.py", "services/health.py"}:  # the standard health service has a contract of its own
        return []
    return [
        f"{module.path}:{node.lineno} uses {node.attr}: raise a domain error, boundary.py turns it into a status"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("abort", "abort_with_status", "set_code", "set_details")
    ]


def catch_alls(module: Module) -> list[str]:
    """Handlers that take anything, beyond those of CATCH_ALLS."""
    caught = [
        node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler) and _takes_anything(node) and not _cleans_up(node)
    ]
    spare, _ = CATCH_ALLS.get(module.path, (0, ""))
    return [f"{module.path}:{node.lineno} catches everything: name what can go wrong" for node in caught[spare:]]


def environment(module: Module) -> list[str]:
    """Reads of the environment outside its doors."""
    if module.path in ENVIRONMENT:
        return []
    names = {"environ", "environb", "getenv", "getenvb"}
    found = [
        f"{module.path}:{node.lineno} reads {node.attr}: settings.py is the one door to the environment"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in names
    ]
    return found + [f"{module.path}:{line} imports {name}" for line, name in imported(module) if name.removeprefix("os.") in names]


def commits(module: Module) -> list[str]:
    """Statements sent, transactions begun or ended elsewhere than in database.py."""
    if module.path in DRIVERS:
        return []
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            # ``commits.commit(asked)`` is a question to database.py; a driver's ``commit()`` takes nothing.
            if name in DRIVER_CALLS or (name in ("commit", "rollback") and not node.args and not node.keywords):
                found.append(f"{module.path}:{node.lineno} calls {name}(): only database.py talks to the driver")
    return found


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""


def _takes_anything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in kinds)


def _cleans_up(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None
