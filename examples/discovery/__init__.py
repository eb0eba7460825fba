"""A discovery of a real server inventory, driven by a worker that is only a client of the service."""
