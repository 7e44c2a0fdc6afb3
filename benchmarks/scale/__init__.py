"""The costs of a fleet of any size: simulated fleets, one process with many sources, one Redis."""
