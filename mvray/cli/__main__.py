"""python -m mvray.cli: as the command mvray."""

import sys

from mvray.cli import main

if __name__ == "__main__":
    sys.exit(main())
