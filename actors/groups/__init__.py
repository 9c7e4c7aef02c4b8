"""Conversations of groups: a machine that decides who speaks, and runners that let them. See `ayllu.schemas.groups`."""
