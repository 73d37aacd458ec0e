"""How well: percentiles with their sample count."""
