"""The control endpoint: what Jitsu says about itself, and can be told, over HTTP."""
