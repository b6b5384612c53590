"""Load tests, the engine simulator and the benchmarks."""
