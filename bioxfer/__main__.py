"""What ``bioxfer`` and ``python -m bioxfer`` run."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line; an interrupt while it is still being loaded ends it as one later would."""
    try:
        from bioxfer.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
