"""Compare and examine finished runs: metrics, tables, figures."""

import utils  # noqa: F401  sets environment variables that matplotlib reads on import
