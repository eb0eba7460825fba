"""PostgreSQL: hands out domain values and domain errors, never rows, sessions or driver errors."""
