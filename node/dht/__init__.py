"""The boundary to hivemind: this peer in the DHT, its records written and read, signed and checked.

`p2p_node.P2PNode` is what everybody else opens; hivemind_dht.py alone imports hivemind.
"""
