"""Words that every floor may use: errors, time, tensors, requests, events. Standard library and numpy only."""
