"""What a node keeps in memory, against what its stage needs: docs/performance.md."""
