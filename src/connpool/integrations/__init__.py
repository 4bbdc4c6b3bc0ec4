"""connpool inside of frameworks: one module or package for each, which sees the public API only."""
