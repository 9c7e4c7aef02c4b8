"""Python functions of operators, run in children: one that hangs, exits or dies takes nothing with it."""
