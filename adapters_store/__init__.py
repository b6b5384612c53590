"""Adapters, their immutable versions, and the aliases clients call."""
