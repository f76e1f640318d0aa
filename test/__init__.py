"""The tests, for trial; `support` and `packets` are what several of them need."""
