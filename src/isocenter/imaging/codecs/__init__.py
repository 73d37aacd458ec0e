"""File formats: bytes in, upright pixels out, or a typed refusal."""
