"""Pictures and physical space; knows no model, queue or web."""
