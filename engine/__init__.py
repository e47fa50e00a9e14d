"""Build, save, resume, evaluate and log a run."""

import utils  # noqa: F401  sets environment variables that matplotlib reads on import
