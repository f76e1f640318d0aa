"""Programs that measure, as ratios against a named peer in the same run."""
