"""Weights as files for other programs."""

from atnet.extras import require

require("export")
