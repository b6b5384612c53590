"""How a local engine is started: a file for each kind."""
