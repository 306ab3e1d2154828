"""The boundary to hivemind: this peer in the DHT, its records written and read, signed and checked.

`hivemind_dht.P2PNode` is what everybody else opens; nobody else imports hivemind.
"""
