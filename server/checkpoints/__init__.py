"""Sealed copies of flows: taken, kept, opened, brought back."""
