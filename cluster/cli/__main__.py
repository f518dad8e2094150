"""`python -m cluster.cli ...`: the command line from a checkout that is not installed."""

import sys

from cluster.cli import main

sys.exit(main())
