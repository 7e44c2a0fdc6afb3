"""The engine: the flow as a generator of effects, the drivers that perform them, and the state of one process."""
