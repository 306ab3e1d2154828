"""An export: the exporter's side (`exporter`, `actions`), and the leases by which owners hold weights still for it.

node/export runs the exporter; the owner of a stage has the leases (protocol/recovery/owned_stage.py).
"""
