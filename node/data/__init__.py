"""Where tokens come from: a corpus in memory, or a dataset read as a stream.

Asked by the stage that drives (node/compute/stage.py) and by whoever founds a run; knows nothing of the network.
"""
