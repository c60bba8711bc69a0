"""`python -m worldmodel` and `torchrun -m worldmodel` are the command `worldmodel`."""

import sys

from worldmodel.cli import main

if __name__ == "__main__":
    sys.exit(main())
