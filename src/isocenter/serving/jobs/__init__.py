"""Work that nobody waits for on the line: kept in a file, run in turn, answered exactly once."""
