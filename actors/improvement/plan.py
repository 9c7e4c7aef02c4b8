"""What a loop does next: pure. What it did says it all, so that whoever takes a loop up goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass

from ...schemas import ImproveRequest
from .state import LoopState, Round


@dataclass(frozen=True, slots=True)
class LookUp:
    """Find out what the name of the improved model serves, before anything is changed."""


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Have held-out prompts answered and scored.

    Attributes:
        job: the job that does it.
        model: who answers.
        helped: whether with help.
        round: whose result it is; 0 is the base.
    """

    job: str
    model: str
    helped: bool = False
    round: int = 0


@dataclass(frozen=True, slots=True)
class Generate:
    """Have training prompts answered, scored and filtered into a dataset.

    Attributes:
        job: the job that does it.
        dataset: the id of the dataset.
        model: who answers.
        helped: whether with help.
        round: whose data it is.
    """

    job: str
    dataset: str
    model: str
    helped: bool
    round: int


@dataclass(frozen=True, slots=True)
class Train:
    """Have the base trained on a dataset, by a job."""

    job: str
    dataset: str
    round: int


@dataclass(frozen=True, slots=True)
class Register:
    """Serve what a job trained."""

    job: str
    round: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Keep a round's result, or serve again what was served before."""

    round: int


Step = LookUp | Evaluate | Generate | Train | Register | Settle


def next_step(request: ImproveRequest, state: LoopState) -> Step | None:
    """Return what is to be done next; None when all of it is done."""
    job = request.job_uuid
    if state.before is None:
        return LookUp()
    if state.baseline is None:
        return Evaluate(f"{job}/baseline", request.model)
    if request.help and state.helped is None:
        return Evaluate(f"{job}/helped", request.model, helped=True)
    return _next_of_round(request, state.rounds[-1])


def _next_of_round(request: ImproveRequest, last: Round) -> Step | None:
    """Return what is to be done next in the last round; one that is over is followed by another, if there is one."""
    job, number = request.job_uuid, last.number
    if last.kept is not None:
        return None
    if last.accepted is None:
        helped = bool(request.help) and last.generator == request.model
        dataset = dataset_id(job, number)
        return Generate(data_job(job, number), dataset, last.generator, helped, number)
    if not last.trained:
        return Train(training_job(job, number), dataset_id(job, number), number)
    if last.version is None:
        return Register(training_job(job, number), number)
    if last.evaluation is None:
        return Evaluate(evaluation_job(job, number), request.name, round=number)
    return Settle(number)


def phase_of(step: Step) -> str:
    """Return what a step does, in words."""
    match step:
        case LookUp():
            return "looking up what is served"
        case Evaluate(round=0):
            return "evaluating the base" + (" with help" if step.helped else "")
    doing = {
        Generate: "generating",
        Train: "training",
        Register: "registering",
        Evaluate: "evaluating",
        Settle: "deciding",
    }
    return f"round {step.round}: {doing[type(step)]}"


def data_job(job: str, number: int) -> str:
    """Return the job that makes the data of a round."""
    return f"{job}/round-{number}/data"


def dataset_id(job: str, number: int) -> str:
    """Return the dataset of a round."""
    return f"{job}/round-{number}"


def training_job(job: str, number: int) -> str:
    """Return the job that trains in a round."""
    return f"{job}/round-{number}/training"


def evaluation_job(job: str, number: int) -> str:
    """Return the job that evaluates what a round has made."""
    return f"{job}/round-{number}/evaluation"
