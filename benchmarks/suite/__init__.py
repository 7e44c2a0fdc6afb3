"""The scenarios of the benchmark suite, with their measurement, claims and report."""
