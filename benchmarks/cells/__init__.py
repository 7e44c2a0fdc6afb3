"""Every backend by situation, timed by pytest-benchmark; it does not import the suite."""
