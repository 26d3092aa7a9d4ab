"""Values and the rules for them: no I/O, no clock, no random numbers."""
