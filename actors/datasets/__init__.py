"""Datasets: what is declared of a table, how its content is fetched and checked, and the examples in it."""
