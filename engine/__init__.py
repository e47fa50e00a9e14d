"""What a run is made of, apart from the method: how it is built, saved, resumed, measured and shown."""

import utils  # noqa: F401  sets what matplotlib reads when it is imported
