"""The websocket client of ayllu: ``async with connect(url) as stack``."""

from ..schemas.proxy import EventStream
from .stack import Stack, connect

__all__ = ["EventStream", "Stack", "connect"]
