"""The data plane: one HTTP protocol, bytes passed through."""
