import utils  # noqa: F401  before all else: it rejects a Python that is too old
