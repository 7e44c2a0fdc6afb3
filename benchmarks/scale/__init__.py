"""What a fleet of any size costs: simulated fleets, one process with many sources, one Redis."""
