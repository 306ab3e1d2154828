"""From SIGKILL to the first commit with the new owner, split into its parts: docs/performance.md."""
