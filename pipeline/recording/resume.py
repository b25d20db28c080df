"""How a run goes on: from its newest state, or from the last good one after it diverged."""

from __future__ import annotations

import math
import sys

from began.gan.divergence import DivergedError
from began.runs.states import Signature, States
from pipeline.console.workspace import runs_folder
from pipeline.recording.run_state import Job, RunState

MAX_REWINDS = 3


def states_of(signature: Signature, num_steps: int) -> States:
    """Where the states of a run of `num_steps` lie: in a folder of its own where a longer run may still go on."""
    states = States(runs_folder() / str(signature))
    done = max((state.step for state in states.all()), default=0)
    if done <= num_steps:
        return states
    print(f"{states.folder}: has done {done:,} steps; starting afresh for {num_steps:,}", file=sys.stderr)
    return States(states.folder.with_name(f"{signature}-{num_steps}"))


def start_of(job: Job) -> RunState:
    """The newest state, if there are steps left to do; otherwise a fresh start, for which older states are removed."""
    states = job.states.all()
    newest = RunState.newest(job) if states and states[0].step < job.settings.train.num_steps else None
    if newest is None:
        job.states.remove(states)
        return RunState()
    return newest


def rewind(job: Job, error: DivergedError) -> RunState:
    """The last good state with half the learning rate; `error` again after MAX_REWINDS of them."""
    last_good = math.inf if error.last_good is None else error.last_good
    states = job.states.all()
    # A loss is measured before the update of its step: that update may be the one that did the damage.
    late = [state for state in states if state.step >= last_good]
    if len(late) < len(states):  # else a late one is better than none
        job.states.remove(late)
    state = RunState.newest(job)
    if state is None:
        raise error
    num_rewinds = int(state.training["num_rewinds"]) + 1
    if num_rewinds > MAX_REWINDS:
        raise ValueError(f"{error}; {MAX_REWINDS} rewinds did not help") from None
    state.training["num_rewinds"] += 1
    state.training["learning_rate"] *= 0.5
    state.run_id = None  # what the old run has of later steps cannot be taken back
    what = str(error).partition(":")[0]
    words = f"{what}: went back to step {state.step:,} with 1/{2**num_rewinds} of the learning rate"
    state.warnings["divergence"] = words
    state.save(job)
    return state


def say_where(job: Job, start: RunState, machine: dict[str, str | int]) -> None:
    """A line about the step, and one where the last bits will differ from those of an uninterrupted run."""
    print(f"Going on from step {start.step:,} of {job.settings.train.num_steps:,}", file=sys.stderr)
    others = [name for name in machine if start.machine.get(name) != machine[name]]
    if others:
        was, now = (", ".join(f"{name} {m.get(name)}" for name in others) for m in (start.machine, machine))
        print(f"It was saved with {was}; here is {now}: the numbers will differ", file=sys.stderr)
