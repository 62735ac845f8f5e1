"""Speed of the training step against other libraries, and of what surrounds it."""
