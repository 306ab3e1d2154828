"""Founding a run and looking at one: the manifest's signature, the first peer of the DHT, the `understudy` command.

Imports node/ and protocol/; nobody imports it.
"""
