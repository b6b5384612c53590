"""Foundation of loraway: settings, schema, database, errors, ids, telemetry."""

__version__ = "0.1.0"
