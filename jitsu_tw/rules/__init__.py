"""The decisions, without I/O: time, settings and observations come in, a value comes out."""
