"""From a model's output to an answer: activation and masks."""
