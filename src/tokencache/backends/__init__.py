"""Where a fleet keeps records and takes leases: one module for each backend, loaded when its URL is first used."""
