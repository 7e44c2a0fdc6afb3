"""The scenarios of the benchmark suite, and what measures, judges and reports them."""
