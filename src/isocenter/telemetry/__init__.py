"""How the outside watches."""
