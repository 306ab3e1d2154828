"""Real peers that mean harm: what they try, and what comes of it."""
