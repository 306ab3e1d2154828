"""Volunteers at home: real nodes in network namespaces, some of them behind routers that translate addresses.

The public side is 5.5.5.0/24, which libp2p takes for public addresses (it does not count private ones, nor those for
documentation). Nothing leaves the namespaces.
"""
