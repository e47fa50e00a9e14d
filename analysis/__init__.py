"""What is done with finished runs: metrics, tables, figures, comparisons."""

import utils  # noqa: F401  sets what matplotlib reads when it is imported
