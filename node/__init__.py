"""The runtime of a peer: network, compute and files around the pure core in `protocol`.

`runtime` joins the packages: p2p, dht and links carry, compute and data work, ui and export serve people.
"""
