"""Memory banks: a log of documents on the bus, and what each actor makes of it: tables, an index, answers."""
