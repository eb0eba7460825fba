"""Settings: what the environment may say, and how a wrong environment is told all at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, default_data_dir, rows
from tests.conftest import KEYS


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("FLOWLEDGER_")]:
        monkeypatch.delenv(name)


def faults(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """Return the sentences that this environment is refused with."""
    for name, value in variables.items():
        monkeypatch.setenv(f"FLOWLEDGER_{name}", value)
    with pytest.raises(SettingsError) as refused:
        Settings.read()
    assert str(refused.value) == "\n".join(refused.value.faults)
    return list(refused.value.faults)


def test_an_empty_environment_serves_on_loopback_with_the_private_database() -> None:
    settings = Settings.read()
    assert (settings.host, settings.port, settings.caller_mode) == ("127.0.0.1", 50051, "trusted")
    assert settings.database_url is None
    assert settings.migration_url is None
    assert settings.data_dir == default_data_dir()


def test_every_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "HOST": "0.0.0.0", "PORT": "0", "CALLER_MODE": "trusted", "ALLOW_TRUSTED_REMOTE": "true",
        "DATABASE_URL": "postgresql://u:p@h:1/d", "OWNER_DATABASE_URL": "postgresql://o:p@h:1/d", "DATABASE_ROLE": "service",
        "DATA_DIR": "/data", "KEY_FILE": "/keys/k", "KEYS": KEYS,
        "POOL_MIN": "3", "POOL_MAX": "30", "STATEMENT_TIMEOUT_SECONDS": "1.5", "DEFAULT_DEADLINE_SECONDS": "7",
        "MAX_DOCUMENT_BYTES": "2048", "MAX_MESSAGE_BYTES": "4096", "DRAIN_SECONDS": "0", "WATCH_MAX_AGE_SECONDS": "60",
        "WATCH_POLL_SECONDS": "0.25", "WATCH_HEARTBEAT_SECONDS": "3", "STREAMS_PER_TENANT": "7", "COMMIT_LANES": "1", "CACHE_MIB": "0",
        "CACHE_SECONDS": "1", "REDIS_URL": "redis://:p@h:1/0", "WAKEUPS": "redis",
        "LISTEN_URL": "postgresql://u:p@h:2/d", "SWEEP_SECONDS": "0", "REQUEST_DAYS": "7", "LOG_LEVEL": "debug",
        "LOG_FORMAT": "json", "METRICS_PORT": "9400", "METRICS_HOST": "::1", "POOLER": "transaction",
    }  # fmt: skip
    assert {f"FLOWLEDGER_{name}" for name in given} == {row.variable for row in rows()}
    for name, value in given.items():
        monkeypatch.setenv(f"FLOWLEDGER_{name}", value)
    settings = Settings.read()
    untouched = Settings.model_construct()
    for name in given:
        assert name == "CALLER_MODE" or getattr(settings, name.lower()) != getattr(untouched, name.lower())
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:p@h:1/d"
    assert settings.migration_url == settings.owner_database_url
    assert (settings.data_dir, settings.watch_poll_seconds, settings.cache_mib) == (Path("/data"), 0.25, 0)


def test_a_blank_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLEDGER_PORT", "")
    monkeypatch.setenv("FLOWLEDGER_DATABASE_URL", "")
    assert Settings.read() == Settings()
    assert Settings.read().port == 50051


def test_the_owners_url_is_the_services_when_none_is_given() -> None:
    settings = Settings.model_validate({"database_url": "postgresql://u@h/d"})
    assert settings.migration_url == settings.database_url


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_keys_are_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = KEYS.partition(":")[2]
    monkeypatch.setenv("FLOWLEDGER_KEYS", KEYS)
    settings = Settings.read()
    assert secret not in repr(settings) + str(settings)
    assert settings.keys is not None
    assert settings.keys.get_secret_value() == KEYS
    (fault,) = faults(monkeypatch, KEYS=f"{KEYS},b:{secret[:-8]}")
    assert fault.startswith("FLOWLEDGER_KEYS must have 32 bytes in base64 for the key b")
    assert secret[:10] not in fault


def test_the_key_file_is_in_the_data_directory_unless_it_is_elsewhere() -> None:
    assert Settings.model_validate({"data_dir": "/data"}).key_path == Path("/data/keys")
    assert Settings.model_validate({"data_dir": "/data", "key_file": "~/k"}).key_path == Path.home() / "k"


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = faults(monkeypatch, PROT="1", PORT="65536", POOL_MIN="x", LOG_LEVEL="loud", WATCH_POLL_SECONDS="nan", MAX_MESSAGE_BYTES="5000")
    assert told == [
        "FLOWLEDGER_PROT is not a setting; the closest one is FLOWLEDGER_PORT. Correct the name or unset it.",
        "FLOWLEDGER_PORT must be at most 65535; it is '65536'.",
        "FLOWLEDGER_POOL_MIN must be a whole number; it is 'x'.",
        "FLOWLEDGER_MAX_MESSAGE_BYTES must be more than FLOWLEDGER_MAX_DOCUMENT_BYTES, which is 4194304; it is 5000.",
        "FLOWLEDGER_WATCH_POLL_SECONDS must be a finite number; it is 'nan'.",
        "FLOWLEDGER_LOG_LEVEL must be 'debug', 'info', 'warning' or 'error'; it is 'loud'.",
    ]


@pytest.mark.parametrize(
    ("variable", "low", "high"),
    [
        ("PORT", "-1", "65536"), ("POOL_MIN", "-1", "201"), ("POOL_MAX", "0", "201"), ("MAX_DOCUMENT_BYTES", "1023", "67108865"),
        ("MAX_MESSAGE_BYTES", "1023", "268435457"), ("STATEMENT_TIMEOUT_SECONDS", "0", "601"), ("DEFAULT_DEADLINE_SECONDS", "0", "3601"),
        ("DRAIN_SECONDS", "-0.1", "3601"), ("WATCH_MAX_AGE_SECONDS", "0.9", "604801"), ("WATCH_POLL_SECONDS", "0.009", "60.1"),
        ("WATCH_HEARTBEAT_SECONDS", "0", "3601"), ("COMMIT_LANES", "0", "9"), ("CACHE_MIB", "-1", "65537"),
    ],
)  # fmt: skip
def test_a_number_outside_its_limits_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, low: str, high: str) -> None:
    (below,) = faults(monkeypatch, **{variable: low})
    (above,) = faults(monkeypatch, **{variable: high})
    assert f"FLOWLEDGER_{variable} must be at least" in below
    assert f"FLOWLEDGER_{variable} must be at most" in above


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "db.example.org", "127.example.org"])
def test_trusted_callers_from_elsewhere_must_be_allowed_by_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    (fault,) = faults(monkeypatch, HOST=host)
    assert fault.startswith("FLOWLEDGER_ALLOW_TRUSTED_REMOTE must be true")
    assert "tenant it claims to be" in fault
    monkeypatch.setenv("FLOWLEDGER_ALLOW_TRUSTED_REMOTE", "true")
    assert Settings.read().host.strip("[]") == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_leave(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("FLOWLEDGER_HOST", host)
    assert Settings.read().host == ("[::1]" if ":" in host else host)


@pytest.mark.parametrize(
    ("variable", "value"), [("HOST", "a b"), ("DATABASE_ROLE", "r" * 64), ("DATABASE_ROLE", "ä" * 32), ("CALLER_MODE", "jwt")]
)
def test_text_that_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    (fault,) = faults(monkeypatch, **{variable: value})
    assert fault.startswith(f"FLOWLEDGER_{variable} must be")


def test_a_pool_whose_least_is_above_its_most_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(monkeypatch, POOL_MIN="11") == ["FLOWLEDGER_POOL_MAX must be at least FLOWLEDGER_POOL_MIN, which is 11; it is 10."]


def test_an_owner_without_a_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = faults(monkeypatch, OWNER_DATABASE_URL="postgresql://o@h/d")
    assert "FLOWLEDGER_OWNER_DATABASE_URL has no use without FLOWLEDGER_DATABASE_URL" in fault


@pytest.mark.parametrize("url", ["postgres://u@h/d", "postgresql://u@h/d"])
def test_both_common_schemes_come_out_as_the_one_that_drivers_take(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FLOWLEDGER_DATABASE_URL", url)
    database_url = Settings.read().database_url
    assert database_url is not None
    assert database_url.get_secret_value() == "postgresql://u@h/d"


def test_an_address_by_socket_comes_out_as_it_went_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("postgresql:///d?host=/run/postgresql", "postgresql://u@/d?host=/run/postgresql&port=5432"):
        monkeypatch.setenv("FLOWLEDGER_DATABASE_URL", url)
        database_url = Settings.read().database_url
        assert database_url is not None
        assert database_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hush@h/d", "postgresql+asyncpg://u:hush@h/d", "host=h password=hush", "postgresql://u:hu#sh@h/d", "postgresql://u:[hush@h/d",
        "postgresql://u:p@h:hush/d", "postgresql:hush",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    told = faults(monkeypatch, DATABASE_URL=url, OWNER_DATABASE_URL=url)
    assert len(told) == 2
    assert "hush" not in "".join(told)


def test_no_password_is_shown_by_settings_or_by_the_traceback_of_a_fault() -> None:
    secret = {"FLOWLEDGER_DATABASE_URL": "postgresql://u:hush@h/d", "FLOWLEDGER_OWNER_DATABASE_URL": "mysql://u:hush@h/d"}
    program = "from server.settings import Settings; Settings.read()"
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, **secret}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "FLOWLEDGER_OWNER_DATABASE_URL must have the form" in ended.stderr
    assert "hush" not in ended.stderr
    shown = Settings.model_validate({"database_url": "postgresql://u:hush@h/d"})
    assert "hush" not in f"{shown!r}{shown}{shown.model_dump()}{shown.model_dump_json()}"


def test_the_user_who_is_not_root_keeps_data_in_the_data_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    assert Settings.read().data_dir == Path("/elsewhere/flowledger")
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    assert Settings.read().data_dir == tmp_path / ".local/share/flowledger"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Settings.read().data_dir == Path("/var/lib/flowledger")


def test_a_data_directory_may_begin_at_home_or_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given, meant in (("~/x", tmp_path / "x"), ("x", tmp_path / "x"), ("/x", Path("/x"))):
        monkeypatch.setenv("FLOWLEDGER_DATA_DIR", given)
        assert Settings.read().data_dir == meant


def test_the_table_explains_every_setting_and_is_the_same_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows()
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert rows() == table
    assert [row.variable for row in table] == [f"FLOWLEDGER_{name.upper()}" for name in Settings.model_fields]
    assert all(row.default and row.meaning.endswith(".") and len(row.meaning) > 20 for row in table)
    defaults = {row.variable: row.default for row in table}
    assert defaults["FLOWLEDGER_ALLOW_TRUSTED_REMOTE"] == "false"
    assert defaults["FLOWLEDGER_DATABASE_URL"] == "unset"
    assert defaults["FLOWLEDGER_WATCH_POLL_SECONDS"] == "0.5"
    assert next(row for row in table if row.variable == "FLOWLEDGER_POOL_MAX").meaning.endswith("From 1 to 200.")


@pytest.mark.parametrize("url", ["http://h:1/0", "redis//h", "localhost:6379", "redis://h:port/0"])
def test_a_redis_url_that_is_none_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    (fault,) = faults(monkeypatch, REDIS_URL=url)
    assert fault.startswith("FLOWLEDGER_REDIS_URL ")
    assert url not in fault


def test_hints_over_redis_need_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = faults(monkeypatch, WAKEUPS="redis")
    assert fault == "FLOWLEDGER_WAKEUPS cannot be redis without FLOWLEDGER_REDIS_URL."
