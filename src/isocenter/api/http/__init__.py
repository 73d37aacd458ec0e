"""HTTP: routes, limits, problems."""
