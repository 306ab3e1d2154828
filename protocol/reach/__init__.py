"""How peers get to each other: who can be dialled, who says which addresses, how a relayed link becomes direct."""
