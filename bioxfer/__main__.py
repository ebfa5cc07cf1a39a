"""What ``python -m bioxfer`` runs."""

from __future__ import annotations

from bioxfer.cli import main

if __name__ == "__main__":
    main()
