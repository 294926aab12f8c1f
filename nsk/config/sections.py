from nsk.config.data import DataConfig  # noqa: F401
from nsk.config.noise import NEVER_FLIPPED, RANDAUGMENT_OPERATIONS  # noqa: F401
