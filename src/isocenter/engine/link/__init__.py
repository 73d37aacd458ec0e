"""An engine in a process of its own: small frames over a socket, pixels in shared memory."""
