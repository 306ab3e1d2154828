"""Taking a model home: the exporter's body, the folder it writes, and the commands `export` and `generate`.

Also the way back, the initial weights of a run. Called by the command line and by bootstrap/.
"""
