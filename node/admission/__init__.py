"""Who is let in at this process, and what it shows to be let in itself. What that rests on is in protocol/admission.

The door of a run is handed to whoever opens the network (node/dht); it knows of no carrier.
"""
