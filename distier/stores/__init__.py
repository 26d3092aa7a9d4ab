"""Where bytes are kept: one small protocol each, one conformance suite for all."""
