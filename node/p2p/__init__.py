"""libp2p: the daemon `p2pd`, its control protocol, identities and addresses, and byte streams between peers.

Used by node/dht and node/links; nothing here knows what the bytes mean.
"""
