"""Which modules leave a tier when room is missing: the choice among the candidates that Redis names."""
