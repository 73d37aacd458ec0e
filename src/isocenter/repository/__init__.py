"""Which models exist, whether they are what they claim, and which version answers."""
