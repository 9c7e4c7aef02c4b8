"""The command lines of ``ayllu top``, ``ayllu trace`` and ``ayllu graph``; apart from what they do, so that other commands need
not load that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

TOP_EXAMPLE = "ayllu top\n  ayllu top --once\n  ayllu top --json --bus nats://10.0.0.1:4222"
TRACE_EXAMPLE = "ayllu trace TURN\n  ayllu trace TURN --agent support --follow"
GRAPH_EXAMPLE = "ayllu graph\n  ayllu graph --tools > agents.mmd"


def add_top_arguments(parser: argparse.ArgumentParser, data_dir: Path) -> None:
    """Add the options of ``ayllu top`` to its parser."""
    parser.add_argument("--once", action="store_true", help="print it once, and end")
    parser.add_argument("--json", action="store_true", help="for programs: a line for each look")
    parser.add_argument("--bus", help="the NATS server's URL; or in AYLLU_BUS_URL")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=data_dir,
        help="of an `ayllu up`, whose bus is taken if none is named (%(default)s)",
    )


def add_trace_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options of ``ayllu trace`` to its parser."""
    parser.add_argument("turn", metavar="TURN", help="the turn's id")
    parser.add_argument(
        "--agent", help="whose it is; needed where agents have turns of the same id, or it waits"
    )
    parser.add_argument("--follow", action="store_true", help="show it until it has ended")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")


def add_graph_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options of ``ayllu graph`` to its parser."""
    parser.add_argument("--tools", action="store_true", help="show the tools of agents, too")
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
