"""All that knows an inference engine: drivers, launching, the fleet, the reconciler."""
