"""Entry point of one child process of a demo."""

from __future__ import annotations

from distier.demo.agent import child_main

if __name__ == "__main__":
    child_main()
