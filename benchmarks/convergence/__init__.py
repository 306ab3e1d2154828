"""Does it work? Churn, and what it costs under each way of recovering: `make study`, docs/results.md."""
