"""Measures the service against its ceilings in alternating rounds on one machine: ``python -m benchmarks``."""
