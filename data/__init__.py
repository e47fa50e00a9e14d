import utils  # noqa: F401  before all else: it refuses a Python that is too old
