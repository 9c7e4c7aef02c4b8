"""How fast ayllu is: see docs/performance.md."""
