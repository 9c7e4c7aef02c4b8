"""The websocket client of ayllu: ``async with connect(url) as stack``."""

from ..schemas.proxy import EventStream
from .agents import AgentClient
from .groups import GroupClient
from .stack import Stack, connect
from .turns import FollowedTurn

__all__ = ["AgentClient", "EventStream", "FollowedTurn", "GroupClient", "Stack", "connect"]
