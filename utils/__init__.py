"""Every script comes by here first, also under a Python that is too old for the rest: this file runs under any."""

import sys

if sys.version_info < (3, 10):
    sys.stderr.write(
        "error: Python 3.10 or newer is needed, this is %d.%d; start it with another\n" % sys.version_info[:2]
    )
    sys.exit(2)
