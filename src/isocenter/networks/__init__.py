"""Wing: torch architectures and their export. Imported by training scripts, never by the server."""
