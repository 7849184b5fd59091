"""The command line, for `python -m align3d` and `torchrun -m align3d`."""

import sys

from align3d.cli import main

if __name__ == "__main__":
    sys.exit(main())
