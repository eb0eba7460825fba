"""The tests of Flowledger."""

import server  # noqa: F401 - before gRPC, whose fork handlers it turns off: tests start PostgreSQL's programs while calls are under way
