"""A simulated world around Jitsu, with everything going wrong that can, and audits of what Jitsu did."""
