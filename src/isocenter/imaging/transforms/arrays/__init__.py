"""Preprocessing of arrays [C, *spatial] as data: tagged steps, each with its way back onto the source grid."""
