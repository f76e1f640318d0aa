"""What `jitsuctl doctor` and `jitsuctl check --connect` look at (`checks`), and what they conclude (`findings`)."""
