"""Ranking quality of ours and of other libraries, on the same rows, features and split."""
