"""distier next to what people use today for the same job: `make bench-stores` writes docs/STORES_BENCH.md."""
