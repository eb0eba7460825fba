"""What must hold when things break: races, kills, outages, restarts."""
