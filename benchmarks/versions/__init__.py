"""Two checkouts beside each other: what did a change cost?"""
