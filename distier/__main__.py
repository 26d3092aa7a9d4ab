"""`python -m distier`: the command line where its script is not on PATH."""

from __future__ import annotations

from distier.cli import main

if __name__ == "__main__":
    main()
