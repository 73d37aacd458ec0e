"""Model frameworks behind one seam: a runtime opens a file as a session; a session runs batches."""
