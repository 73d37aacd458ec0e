"""Models that others have made, as model folders: one file a format. Nothing in them is evaluated or unpickled."""
