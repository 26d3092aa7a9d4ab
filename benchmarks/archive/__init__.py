"""What the archive costs: `make bench-archive` writes docs/ARCHIVE_BENCH.md."""
