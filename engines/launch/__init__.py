"""How a local engine is started: a file an engine and device, one process class for all."""
