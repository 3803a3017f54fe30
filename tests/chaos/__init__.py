"""A program that torments a whole system, and audits what became of it."""
