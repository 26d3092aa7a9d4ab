"""Test suites for those who extend distier: `archives.ArchiveConformance` for archives. They need pytest."""
