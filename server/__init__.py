"""The Flowledger service."""

import os

# gRPC's fork handlers crash about every third child that is forked while calls are under way, and PostgreSQL's programs are such children
# when root starts them as another account. Nothing here calls gRPC after a fork, so they have no use. Read when gRPC begins.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
