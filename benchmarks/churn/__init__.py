"""The macro benchmark: traces replayed on distier and on caches that people write by hand, with the same memory."""
