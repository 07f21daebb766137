"""Load on a model, and what came of it: tokens per second, and how long its users waited."""
