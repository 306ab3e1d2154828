"""Who may take part in a run: invites that the founder signed, memberships made of them, and what was taken back.

Pure: how a signature is verified is handed in (node/admission). docs/security.md says what it is worth.
"""
