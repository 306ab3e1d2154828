"""How peers get to each other: who says which addresses, and how a relayed link becomes a direct one."""
