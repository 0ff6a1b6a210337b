"""``phase-bus simulate``."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter, validators

from phase_bus.cli.options import (
    NOT_NEGATIVE,
    AddressOption,
    check_bus,
    check_delivered,
    finite,
    key_values,
    parse_address,
)
from phase_bus.cli.output import configure_logging, say
from phase_bus.errors import PhaseBusError
from phase_bus.publisher.publisher import Publisher

_PATIENCE_S = 2.0
_FLUSH_S = 60.0
_BUFFER_BYTES = 256 << 20  # more than waits at any rate


def simulate(
    *,
    address: AddressOption = None,
    requests: Annotated[int, NOT_NEGATIVE, Parameter(name=["--requests", "-n"])] = 2000,
    rate: Annotated[float, NOT_NEGATIVE, Parameter(name=["--rate", "-r"])] = 500.0,
    warmup: Annotated[int, NOT_NEGATIVE] = 50,
    error_rate: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))] = 0.01,
    progress_s: float = 0.5,
    runs: Annotated[int, NOT_NEGATIVE] = 1,
    seed: int = 0,
    run_id: str | None = None,
    ttft_ms: Annotated[float, Parameter(validator=(validators.Number(gt=0), finite))] = 30.0,
    sweep_id: str | None = None,
    trial: int | None = None,
    label: str | None = None,
    variation: list[str] | None = None,
    insecure: bool = False,
) -> None:
    """Publish a synthetic run of any size and rate, for trying things without AIPerf.

    The records have the metrics that AIPerf's have; the numbers are drawn at random, the same for the
    same seed.

    For example:

        phase-bus exec --with aggregator -- phase-bus simulate -n 10000 --rate 2000
        phase-bus simulate --requests 1000000 --rate 0 --address tcp://127.0.0.1:5670
        phase-bus simulate --sweep-id try --variation concurrency=8 --runs 3

    Args:
        requests: Requests of the profiling phase.
        rate: Requests a second; 0 for as fast as possible.
        warmup: Requests of the warm-up phase before it; 0 for none.
        error_rate: The share of requests that fail, 0 to 1.
        progress_s: Seconds between progress events.
        runs: How many runs, one after another.
        seed: What the numbers are drawn from.
        run_id: The run's id; by default a new one. With several runs, '-2' and so on is added.
        ttft_ms: The median time to the first token.
        sweep_id: The sweep that the run belongs to. Several runs are then its trials, counted from 0.
        trial: The number of the first run's trial.
        label: The run's label in the sweep.
        variation: A parameter that the sweep varies, as KEY=VALUE. May be repeated.
        insecure: Without a bus (direct+tcp://HOST:PORT), let other machines connect: there are no keys.
    """
    from phase_bus.harness.simulation import Simulation

    configure_logging()
    varied = {key: _number_or_text(text) for key, text in key_values(variation, "--variation").items()}
    trial = 0 if trial is None and sweep_id is not None else trial
    where = parse_address(address)
    if not where.direct:
        check_bus(where)
    bind = str(where) if where.direct else None
    with Publisher(
        None if bind else str(where),
        bind=bind,
        name="simulate",
        buffer_bytes=_BUFFER_BYTES,
        insecure=insecure,
    ) as publisher:
        taken = True
        for number in range(runs):
            simulation = Simulation(
                publisher,
                requests=requests,
                rate=rate,
                warmup=warmup,
                error_rate=error_rate,
                progress_s=progress_s,
                seed=seed + number,
                ttft_ms=ttft_ms,
                sweep={
                    "sweep_id": sweep_id,
                    "trial": None if trial is None else trial + number,
                    "label": label,
                    "variation": varied,
                },
            )
            if run_id is not None:
                simulation.run_id = f"{run_id}-{number + 1}" if number else run_id
            simulation.run()
            if not (taken := _flush(publisher)):
                break
            say(f"run {simulation.run_id}: {requests + warmup:,} records published")
    check_delivered(publisher)
    if not taken:
        raise PhaseBusError(f"{where} took the events too slowly: {_FLUSH_S:g} s were not enough")


def _flush(publisher: Publisher) -> bool:
    """Wait until all is delivered; return whether it is, and say so if that takes long."""
    if publisher.flush(timeout_s=_PATIENCE_S):
        return True
    say(f"waiting up to {_FLUSH_S:g} s for the bus to take the rest")
    return publisher.flush(timeout_s=_FLUSH_S)


def _number_or_text(text: str) -> int | float | str:
    for convert in (int, float):
        with suppress(ValueError):
            return convert(text)
    return text
