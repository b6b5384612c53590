"""What the users of a load test do, a file a kind of user."""
