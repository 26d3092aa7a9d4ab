"""`distier doctor`: checks of Redis, the archive, this node's disk and the token counter."""
