"""Moving messages: typed calls and streams between actors, over NATS or within one process.

``async with connect(url) as bus`` opens it, ``client(Protocol, bus)`` calls actors, ``serve(bus, actor)`` is one.
"""

# This import makes a bare `import bus` fail loudly: there would be two copies of every class.
from ..schemas.proxy import EventStream
from .bus import Bus, connect, local_bus
from .client import client
from .service import serve

__all__ = ["Bus", "EventStream", "client", "connect", "local_bus", "serve"]
