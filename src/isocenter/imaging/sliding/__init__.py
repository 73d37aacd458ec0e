"""Spatial windows over an array: where they lie, how they are weighted, how their outputs become one."""
