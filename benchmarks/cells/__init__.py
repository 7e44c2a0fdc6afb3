"""Every backend by situation, timed by pytest-benchmark; it imports nothing of the suite."""
