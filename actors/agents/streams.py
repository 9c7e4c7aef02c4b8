"""The streams of agents: where on the bus their definitions, commands, journals and tokens are, and in which lanes turns wait.

    KV agents                                an agent's definition
    ayllu.v1.agent.<agent>.command           what is asked of an agent, until it is done
    ayllu.v1.agent.<agent>.inbox             what anybody tells it: each message is a turn, until it is done
    ayllu.v1.agent.<agent>.history           what its turns left behind
    ayllu.v1.wake.agent.<agent>              the work queue of wake-ups
    ayllu.v1.turn.<agent>.<turn>.step        the journal of a turn, fenced
    ayllu.v1.turn.<agent>.<turn>.delta       tokens as they come, in memory

Names of agents, lanes and turns are encoded, each into one token (`ayllu.bus.subjects`).
"""

from __future__ import annotations

from ...bus.durable import StreamSpec
from ...bus.subjects import ROOT, decode_token, encode_token

DAY = 86_400.0

AGENTS = StreamSpec(
    name="AGENTS",
    subjects=(f"{ROOT}.agent.*.command", f"{ROOT}.agent.*.inbox", f"{ROOT}.agent.*.history"),
    max_bytes=4 << 30,
    # A full stream refuses new turns: nothing that was accepted may be lost.
    discard="new",
)
WAKE = StreamSpec(
    name="AGENT_WAKE",
    subjects=(f"{ROOT}.wake.agent.*",),
    work_queue=True,
    max_bytes=256 << 20,
    discard="new",
)
JOURNAL = StreamSpec(
    name="TURNS", subjects=(f"{ROOT}.turn.*.*.step",), max_bytes=8 << 30, max_age=30 * DAY
)
DELTAS = StreamSpec(
    name="TURN_DELTAS",
    subjects=(f"{ROOT}.turn.*.*.delta",),
    storage="memory",
    max_bytes=256 << 20,
    max_age=3600.0,
)
STREAMS = (AGENTS, WAKE, JOURNAL, DELTAS)


BESIDE = "\x1f"
"""Stands in the name of a lane between agent and turn; no agent's name has it."""


def lane_of(agent: str, turn: str) -> str:
    """Return the lane of a detached turn.

    A lane is what turns wait in for each other, and what one executor at a time works in: an agent's own bears its name, and
    a detached turn has one to itself. Commands, wake-ups, signals and leases are those of lanes; all that is kept of a turn is
    its agent's.
    """
    return f"{agent}{BESIDE}{turn}"


def agent_of(lane: str) -> str:
    """Return whose turns a lane has."""
    return lane.partition(BESIDE)[0]


def turn_of_lane(lane: str) -> str | None:
    """Return the one turn that a lane is of; None where it is an agent's own."""
    return lane.partition(BESIDE)[2] or None


def command_subject(lane: str) -> str:
    """Return where it is told what to do in a lane."""
    return f"{ROOT}.agent.{encode_token(lane)}.command"


COMMANDS = command_subject("x").replace(".x.", ".*.")
"""The subjects of all commands."""


def lane_of_command(subject: str) -> str:
    """Return the lane that a command, or a message in an inbox, is for.

    Raises:
        ValueError: no lane is called so.
    """
    return decode_token(subject.split(".")[3])


def inbox_subject(agent: str) -> str:
    """Return where anybody on the bus tells an agent something: a `Message`, or the request of `agentic_system.execute`."""
    return f"{ROOT}.agent.{encode_token(agent)}.inbox"


INBOXES = inbox_subject("x").replace(".x.", ".*.")
"""The subjects of all inboxes."""


def history_subject(agent: str) -> str:
    """Return where an agent's turns leave their dialogs."""
    return f"{ROOT}.agent.{encode_token(agent)}.history"


def wake_subject(lane: str) -> str:
    """Return where executors are told that there is something to do in a lane."""
    return f"{ROOT}.wake.agent.{encode_token(lane)}"


def lane_of_wake(subject: str) -> str:
    """Return the lane that a wake-up is for.

    Raises:
        ValueError: it is none.
    """
    return decode_token(subject.removeprefix(f"{ROOT}.wake.agent."))


def signal_subject(lane: str) -> str:
    """Return where an executor that works in a lane hears that there is a new command; live, not stored."""
    return f"{ROOT}.signal.agent.{encode_token(lane)}"


def lane_of_signal(subject: str) -> str:
    """Return the lane that a signal is for.

    Raises:
        ValueError: it is none.
    """
    return decode_token(subject.removeprefix(f"{ROOT}.signal.agent."))


def journal_subject(agent: str, turn: str) -> str:
    """Return where the journal of a turn is."""
    return f"{ROOT}.turn.{encode_token(agent)}.{encode_token(turn)}.step"


def turn_of_journal(subject: str) -> str:
    """Return the turn that a journal is of."""
    return decode_token(subject.split(".")[4])


def delta_subject(agent: str, turn: str) -> str:
    """Return where the tokens of a turn go."""
    return f"{ROOT}.turn.{encode_token(agent)}.{encode_token(turn)}.delta"
