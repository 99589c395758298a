"""`python -m oarlock_runtime.cli`: the same as the `oarlock` script."""

import sys

from oarlock_runtime.cli.dispatch import main

sys.exit(main())
