"""Storage backends: Redis, the archive (S3 or a directory), and a node's disk. One conformance suite tests all archives."""
