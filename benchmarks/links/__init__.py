"""Links slower than the arithmetic: docs/performance.md, "Slow links"."""
