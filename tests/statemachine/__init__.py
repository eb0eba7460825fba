"""The state machine, tested by itself: no server, no database, no clock."""
