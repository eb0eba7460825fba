"""The one door to the environment: everything that an operator can set, checked all at once."""

import difflib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from server import vault

PREFIX = "FLOWLEDGER_"
# What the operator's commands take from the environment; nothing to the service, and no fault either.
CLIENT_VARIABLES = frozenset(f"{PREFIX}CLIENT_{name}" for name in ("ADDRESS", "ACCOUNT", "ENGAGEMENT", "USER", "TIMEOUT"))
KIB, MIB = 1024, 1024 * 1024


class SettingsError(ValueError):
    """The environment cannot be served from; `faults` holds one sentence per fault, each naming its variable."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the configuration table: the variable, its default as text, what it means with unit and limits."""

    variable: str
    default: str
    meaning: str


def default_data_dir() -> Path:
    """Return where data is kept when nobody says: /var/lib for root, else the user's data home by the XDG base directory specification."""
    if os.geteuid() == 0:
        return Path("/var/lib/flowledger")
    home = Path(os.environ.get("XDG_DATA_HOME", ""))
    # The specification asks to ignore a relative XDG_DATA_HOME.
    return (home if home.is_absolute() else Path.home() / ".local" / "share") / "flowledger"


def _database_url(value: SecretStr) -> SecretStr:
    # No message here repeats any part of the URL: a mistyped one can show its password anywhere.
    try:
        url = urlsplit(value.get_secret_value())
        _ = url.port  # parsed when it is asked for
    except ValueError:
        raise ValueError("is not a URL; write characters such as @ : / # [ ] in a password as %40 %3A %2F %23 %5B %5D") from None
    if url.fragment:
        raise ValueError("must not hold a bare #; write it as %23 in a password")
    if url.scheme not in {"postgresql", "postgres"} or not (url.netloc or url.query):
        raise ValueError("must have the form postgresql://user:password@host:port/database, without a driver's name in the scheme")
    return SecretStr(urlunsplit(url._replace(scheme="postgresql")) if url.netloc else f"postgresql://{url.path}?{url.query}")


def _host(value: str) -> str:
    if not value.isprintable() or any(character.isspace() for character in value):
        raise ValueError(f"must be an address or a host name without spaces; it is {value!r}")
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return value
    return f"[{value}]" if address.version == 6 else value  # so that a port can follow


def _role(value: str) -> str:
    # 63 bytes is where PostgreSQL would cut the name, silently.
    if not value.isprintable() or len(value.encode()) > 63:
        raise ValueError(f"must be a role's name of at most 63 bytes; it has {len(value.encode())}")
    return value


def _data_dir(value: Path) -> Path:
    return value.expanduser().absolute()


def _redis_url(value: SecretStr) -> SecretStr:
    try:
        url = urlsplit(value.get_secret_value())
        _ = url.port
    except ValueError:
        raise ValueError("is not a URL; write characters such as @ : / # [ ] in a password as %40 %3A %2F %23 %5B %5D") from None
    if url.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("must have the form redis://user:password@host:port/0, rediss:// for TLS, or unix://path")
    return value


def _keys(value: SecretStr) -> SecretStr:
    vault.parsed(value.get_secret_value())  # raises a ValueError that holds nothing of them
    return value


DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Settings(BaseSettings):
    """What the service was told, from variables FLOWLEDGER_<FIELD>; keyword arguments win over the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    """Address to listen on; anything but loopback also needs FLOWLEDGER_ALLOW_TRUSTED_REMOTE while callers are trusted."""

    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """TCP port to listen on; 0 lets the kernel choose, and the start-up line says which."""

    caller_mode: Literal["trusted"] = "trusted"
    """How a caller is known; `trusted` believes the metadata x-client-account-id, x-engagement-id and x-user-id."""

    allow_trusted_remote: bool = False
    """Whether mode `trusted` may listen beyond loopback; only right behind a proxy that sets the identity itself."""

    database_url: DatabaseUrl | None = None
    """PostgreSQL 15 to 18, as the role that the service works as; unset starts a private PostgreSQL in the data directory."""

    owner_database_url: DatabaseUrl | None = None
    """The same database as the role that owns the tables, for migrations; unset takes FLOWLEDGER_DATABASE_URL."""

    database_role: Annotated[str, AfterValidator(_role)] | None = None
    """Role that every connection of the service takes with SET ROLE; for when FLOWLEDGER_DATABASE_URL logs in as the owner."""

    data_dir: Annotated[Path, AfterValidator(_data_dir)] = Field(default_factory=default_data_dir)
    """Directory of the private PostgreSQL; servers that name the same one share it."""

    key_file: Annotated[Path, AfterValidator(_data_dir)] | None = None
    """File with the keys that tenants' data keys are wrapped with; unset is `keys` in the data directory, made on the first start."""

    keys: Annotated[SecretStr, AfterValidator(_keys)] | None = None
    """Such keys instead of a file's: pairs `name:base64`, separated by commas; the first wraps, all of them unwrap."""

    pool_min: Annotated[int, Field(ge=0, le=200)] = 2
    """Connections to PostgreSQL that are kept open when idle; not above FLOWLEDGER_POOL_MAX."""

    pool_max: Annotated[int, Field(ge=1, le=200)] = 10
    """Connections to PostgreSQL at most."""

    statement_timeout_seconds: Annotated[float, Field(ge=0.01, le=600, allow_inf_nan=False)] = 5.0
    """Seconds after which PostgreSQL gives up one statement."""

    default_deadline_seconds: Annotated[float, Field(ge=0.01, le=3600, allow_inf_nan=False)] = 30.0
    """Seconds that a call without a deadline of its own may take; streams that watch are exempt."""

    max_document_bytes: Annotated[int, Field(ge=KIB, le=64 * MIB)] = 4 * MIB
    """Size of one document (a state, a child's data) at most, in bytes of JSON."""

    max_message_bytes: Annotated[int, Field(ge=KIB, le=256 * MIB)] = 16 * MIB
    """Size of one gRPC message at most, in bytes, both ways; above FLOWLEDGER_MAX_DOCUMENT_BYTES."""

    drain_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 10.0
    """Seconds that running calls are given to end at shutdown."""

    watch_max_age_seconds: Annotated[float, Field(ge=1, le=604800, allow_inf_nan=False)] = 1800.0
    """Seconds after which a watch is ended as too old; the client resumes it, perhaps on another server."""

    watch_poll_seconds: Annotated[float, Field(ge=0.01, le=60, allow_inf_nan=False)] = 0.5
    """Seconds between looks at the database for what moved without a wake-up; one look for all that is watched."""

    watch_heartbeat_seconds: Annotated[float, Field(ge=0.01, le=3600, allow_inf_nan=False)] = 15.0
    """Seconds of silence after which a watch sends its position."""

    streams_per_tenant: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    """Watches (WatchFlow, WatchFlows) that one tenant may have open on this server."""

    commit_lanes: Annotated[int, Field(ge=1, le=8)] = 4
    """Transactions that carry combined commits at the same time; more than one only while the others are slow."""

    cache_mib: Annotated[int, Field(ge=0, le=65536)] = 128
    """Memory for cached flows at most, in MiB; 0 caches nothing. A commit to a flow that is not there reads it first; 128 hold 5,400."""

    cache_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0
    """Seconds that a read with consistency CACHED may be behind."""

    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = None
    """Redis for hints between processes and for views that they share; unset does without, and so does a server whose Redis is away."""

    wakeups: Literal["auto", "redis", "postgres", "local"] = "auto"
    """How processes hint to each other that a flow moved; `auto`: `redis` if it is set, else `postgres` (NOTIFY); `local`: not at all."""

    listen_url: DatabaseUrl | None = None
    """PostgreSQL itself, for LISTEN, when FLOWLEDGER_DATABASE_URL leads through a pooler in transaction mode; unset takes that one."""

    sweep_seconds: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 60.0
    """Seconds between two rounds of what is done in the background (expiry, compaction, new seals, stuck flows); 0 does none of it here."""

    request_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """Days that request ids are kept at least; those of a flow that can still be changed are kept longer, until it has rested as long."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port where Prometheus reads metrics over HTTP; 0 serves none; several workers take the ports from this one on."""

    metrics_host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    """Address to serve metrics on; they name no tenant, and whoever reaches them can read them."""

    pooler: Literal["none", "transaction"] = "none"
    """What FLOWLEDGER_DATABASE_URL leads through; `transaction`: PgBouncer with pool_mode=transaction, or one that behaves like it."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """Form of the log on standard error; `auto` is `console` on a terminal, else `json`."""

    @field_validator("allow_trusted_remote")
    @classmethod
    def _trusted_remote(cls, allowed: bool, info: ValidationInfo) -> bool:
        host = info.data.get("host")  # absent when it has a fault of its own
        if host is not None and info.data.get("caller_mode") == "trusted" and not allowed and not _is_loopback(host):
            raise ValueError(
                f"must be true before {PREFIX}HOST may be {host!r}: in caller mode 'trusted' whoever reaches the port is whatever "
                "tenant it claims to be. Listen on 127.0.0.1, or set it when a proxy in front sets the identity"
            )
        return allowed

    @field_validator("wakeups")
    @classmethod
    def _wakeups_need_redis(cls, wakeups: str, info: ValidationInfo) -> str:
        if wakeups == "redis" and info.data.get("redis_url", "faulty") is None:
            raise ValueError(f"cannot be redis without {PREFIX}REDIS_URL")
        return wakeups

    @field_validator("pooler")
    @classmethod
    def _pooler_needs_urls(cls, pooler: str, info: ValidationInfo) -> str:
        told = info.data
        if pooler == "none" or not {"database_url", "wakeups", "redis_url", "listen_url"} <= told.keys():  # one has a fault of its own
            return pooler
        if told["database_url"] is None:
            raise ValueError(f"has no use without {PREFIX}DATABASE_URL: nothing stands before the private PostgreSQL")
        notified = told["wakeups"] == "postgres" or (told["wakeups"] == "auto" and told["redis_url"] is None)
        if notified and told["listen_url"] is None:
            raise ValueError(
                f"must be none, or {PREFIX}LISTEN_URL must name PostgreSQL itself: a pooler carries no notifications. Or let hints go over "
                f"{PREFIX}REDIS_URL, or do without them ({PREFIX}WAKEUPS=local)"
            )
        return pooler

    @field_validator("owner_database_url")
    @classmethod
    def _owner_needs_database(cls, owner: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if owner is not None and info.data.get("database_url", owner) is None:
            raise ValueError(f"has no use without {PREFIX}DATABASE_URL: the private PostgreSQL has an owner of its own")
        return owner

    @field_validator("pool_max")
    @classmethod
    def _pool_order(cls, pool_max: int, info: ValidationInfo) -> int:
        pool_min = info.data.get("pool_min")
        if pool_min is not None and pool_max < pool_min:
            raise ValueError(f"must be at least {PREFIX}POOL_MIN, which is {pool_min}; it is {pool_max}")
        return pool_max

    @field_validator("max_message_bytes")
    @classmethod
    def _message_holds_document(cls, message: int, info: ValidationInfo) -> int:
        document = info.data.get("max_document_bytes")
        if document is not None and message <= document:
            raise ValueError(f"must be more than {PREFIX}MAX_DOCUMENT_BYTES, which is {document}; it is {message}")
        return message

    @property
    def migration_url(self) -> SecretStr | None:
        """URL for migrations: the owner's, else the service's own; None for the private PostgreSQL.

        Raises SettingsError where the service's own leads through a pooler: migrations hold a lock from transaction to transaction.
        """
        if self.owner_database_url is None and self.pooler != "none":
            raise SettingsError([f"{PREFIX}OWNER_DATABASE_URL must name PostgreSQL itself: migrations do not go through a pooler."])
        return self.owner_database_url or self.database_url

    @property
    def key_path(self) -> Path:
        """Where the key file is, when there are no keys in the environment."""
        return self.key_file or self.data_dir / "keys"

    @classmethod
    def read(cls) -> Self:
        """Return the settings of this process's environment.

        Raises SettingsError with every fault at once: values out of their limits, and FLOWLEDGER_ variables that do not exist.
        """
        known = {*_variables(), *CLIENT_VARIABLES}
        faults = [_unknown(name) for name in sorted(os.environ) if name.upper().startswith(PREFIX) and name.upper() not in known]
        try:
            settings = cls()
        except ValidationError as error:
            faults += [_sentence(fault) for fault in error.errors(include_url=False)]
            raise SettingsError(faults) from None  # the cause would bring the values back into a traceback
        if faults:
            raise SettingsError(faults)
        return settings


def rows() -> tuple[Row, ...]:
    """Return the configuration table, one row per setting in the order of the class."""
    return tuple(
        Row(_variable(name), _default_text(name), f"{field.description or ''}{_limits_text(field.metadata)}")
        for name, field in Settings.model_fields.items()
    )


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def _variables() -> list[str]:
    return [_variable(name) for name in Settings.model_fields]


def _default_text(name: str) -> str:
    if name == "data_dir":  # depends on who asks; the table must not
        return "/var/lib/flowledger as root, else $XDG_DATA_HOME/flowledger (~/.local/share/flowledger)"
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        return str(default).lower()
    return "unset" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def _limits_text(metadata: list[object]) -> str:
    low = next((limit.ge for limit in metadata if hasattr(limit, "ge")), None)
    high = next((limit.le for limit in metadata if hasattr(limit, "le")), None)
    return "" if low is None or high is None else f" From {low} to {high}."


def _unknown(name: str) -> str:
    known = [variable.removeprefix(PREFIX) for variable in (*_variables(), *sorted(CLIENT_VARIABLES))]
    closest = difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, n=1, cutoff=0)
    return f"{name} is not a setting; the closest one is {PREFIX}{closest[0]}. Correct the name or unset it."


def _sentence(fault: ErrorDetails) -> str:
    field = str(fault["loc"][0])
    context = fault.get("ctx", {})
    rule = {
        "int_parsing": "must be a whole number",
        "float_parsing": "must be a number",
        "finite_number": "must be a finite number",
        "bool_parsing": "must be true or false",
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "literal_error": f"must be {context.get('expected')}",
        "value_error": str(context.get("error")),
        "extra_forbidden": "is not a setting",
    }.get(fault["type"], f"is not right: {fault['msg']}")
    shows_value = fault["type"] != "value_error" and not field.endswith("_url") and fault["type"] != "extra_forbidden"
    value = str(fault["input"])
    return f"{_variable(field)} {rule}" + (f"; it is {value[:60]!r}." if shows_value else ".")
