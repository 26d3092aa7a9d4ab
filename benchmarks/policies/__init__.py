"""`make bench-policies`: eviction policies replayed through a real server, and simulated by the same policy code."""
