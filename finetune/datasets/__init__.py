"""Immutable dataset snapshots from files and from traffic."""
