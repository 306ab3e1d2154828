"""Standby copies: what peers hold of each other's stages, so that a lost one comes back as it was.

Who holds what (holders), the owner's side (source), the holder's side (shelf). An owner asks protocol/recovery for
nothing, and it asks a shelf only what it has.
"""
