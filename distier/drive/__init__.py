"""Drivers perform the effects that plans yield. Deadlines and retries exist only here."""
