"""The use cases, in the product's words."""
