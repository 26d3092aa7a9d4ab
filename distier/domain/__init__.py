"""Values and the rules over them: no I/O, no clock, no chance."""
