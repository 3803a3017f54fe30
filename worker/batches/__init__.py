"""Batches: jobs submitted together, one a row of a file; checked and priced before any of them is made."""
