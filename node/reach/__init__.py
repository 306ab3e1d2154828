"""Finding out whether this node can be dialled: peers are asked to dial back, and dial back themselves.

What follows from their answers is decided in protocol/reach. Used by the command lines, by the seed and by node/doctor.
"""
