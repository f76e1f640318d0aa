"""The configuration: the declaration of each key, the files, and what is built of them."""
