"""Translation only: the outside world to use cases and back."""
