"""Small faults that are put into a copy of the product, one at a time: the unit tests must notice each."""
