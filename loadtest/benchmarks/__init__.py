"""Benchmarks behind `make bench-NAME`."""
