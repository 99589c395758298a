"""`python -m oarlock_operator.cli` is `oarlock-operator`."""

import sys

from oarlock_operator.cli.main import main

sys.exit(main())
