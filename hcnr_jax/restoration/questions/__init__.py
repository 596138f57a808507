"""Questions that judge a restoration: held-out rows of the files, built-in questions, and the comparison of models."""
