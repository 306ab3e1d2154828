"""What must hold inside a core after every event: of the node, its claim and what it does; of the stage that it owns.

Asked by protocol/core.py; reads what the parts keep to themselves, and no part knows of it.
"""
