"""`python -m contrique.cli`, as torchrun starts it."""

import sys

from contrique.cli.main import main

sys.exit(main())
