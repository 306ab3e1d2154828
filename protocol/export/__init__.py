"""An export: the exporter's side (`exporter`, `actions`), and the leases by which owners hold weights still for it.

node/export runs the exporter; the host of a stage carries the leases.
"""
