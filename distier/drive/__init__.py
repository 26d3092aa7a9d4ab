"""Drivers: they perform the effects that plans yield. Deadlines and retries are here, and nowhere else."""
