"""The operator's commands: a client of a service that runs, on a terminal, in a pipe, or as JSON."""
