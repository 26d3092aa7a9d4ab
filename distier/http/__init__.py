"""What serves HTTP: a small server for probes and metrics."""
