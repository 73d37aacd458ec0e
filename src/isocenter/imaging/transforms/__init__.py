"""Preprocessing as data: tagged steps, one reference implementation, one fast one."""
