"""Several processes as one server: front ends that decode, an engine process, and the one that keeps them alive."""
