"""`python -m fastclip` is the command `fastclip`."""

import sys

from fastclip.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
