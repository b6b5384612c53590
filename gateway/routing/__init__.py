"""Where a replica is chosen: a policy a file."""
