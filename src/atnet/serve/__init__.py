"""A server of an exported network. Free of torch."""

from atnet.extras import require

require("serve")
