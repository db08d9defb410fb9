"""A script without a main guard."""

import sys

sys.exit("acme is done")
