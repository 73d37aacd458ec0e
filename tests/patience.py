"""How long tests wait for what comes."""

PATIENCE_S = 300.0
"""Ends what hangs, on the slowest machine that runs the tests. Nothing is judged by it: how long things take is for the
benchmarks."""

PATIENT = {"x-timeout-ms": str(int(1e3 * PATIENCE_S))}
"""What a caller says who wants his answer, however many others there are."""
