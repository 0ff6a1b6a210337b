"""What is done to sinks and their servers; each returns what is wrong afterwards, by the sink's name.

All sinks of a world go through a scenario at the same time: one bus, one run, and for each a process and
a server.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from phase_bus.events import Records
from phase_bus.harness.ending import EXIT_CUT_OFF
from phase_bus.testing.process import PythonProcess
from phase_bus.testing.waiting import wait_until
from tests.sinks.case import WRONG_SECRET, Proxy, SinkCase
from tests.sinks.publish import POISON
from tests.sinks.world import PATIENCE_S, SinkProcess, World
from tests.support.processes import ROOT
from tests.support.servers.faults import LOSE_ANSWER, PASS, answer, delay
from tests.support.servers.tcp_faults import TcpProxy
from tests.support.workplace import complaints

Wrong = dict[str, list[str]]
_ASKED_S = 2


def its_server_is_killed(
    world: World, run_id: str, down_s: float, max_rows_per_s: float, batch_rows: int
) -> Wrong:
    """SIGKILL in the middle of a run, and a start after a while; what waited comes at a bounded rate."""
    rate = max_rows_per_s / 3
    records = round(rate * (down_s + 4.0))
    world.publish(run_id, records, rate)
    world.await_some(run_id, records // 20)
    for case in world.cases.values():
        case.kill()
    time.sleep(down_s)  # not a wait for anything: it is how long the servers are away
    for case in world.cases.values():
        case.revive()
    rates = {name: _Rate(partial(case.count, run_id)) for name, case in world.cases.items()}

    def caught_up() -> bool:
        handled = world.handled(run_id)
        behind = [each for name, each in rates.items() if each.count < records and name not in handled]
        for each in behind:
            each.look()
        return not behind

    world.wait(caught_up, 2 * PATIENCE_S)
    wrong = _verdicts(world, run_id)
    for name, measured in rates.items():
        if world.cases[name].has_totals:
            continue
        if too_many := measured.above(max_rows_per_s, 3 * batch_rows):
            wrong.setdefault(name, []).append(too_many)
    return wrong


class _Rate:
    """How many records a server has come to have since it was looked at first."""

    def __init__(self, look: Callable[[], int]) -> None:
        self._look = look
        self._seen: list[tuple[float, float, int]] = []  # between which times it was seen
        self.count = 0

    def look(self) -> None:
        """Look again, if that can be done now."""
        before_s = time.monotonic()
        try:
            self.count = self._look()
        except OSError:
            return
        self._seen.append((before_s, time.monotonic(), self.count))

    def above(self, limit_per_s: float, spare: int) -> str:
        """Return how the rate went beyond a limit, if it did, by more than some rows."""
        for place, (from_s, _, before) in enumerate(self._seen):
            for _, until_s, after in self._seen[place + 1 :]:
                most = limit_per_s * (until_s + 0.1 - from_s) + spare
                if after - before > most:
                    return f"{after - before} rows within {until_s - from_s:.2f} s: more than {most:.0f}"
        return ""


def answers_are_lost(world: World, run_id: str, records: int, rate: float) -> Wrong:
    """The server has done what it was told, and the sink does not hear of it; several times."""
    lost: dict[str, Callable[[], int]] = {}

    def lose(name: str) -> None:
        match world.cases[name].proxy:
            case Proxy() as proxy:
                proxy.next(LOSE_ANSWER)
                lost[name] = partial(proxy.counts.__getitem__, "lost")
            case TcpProxy() as proxy:
                proxy.lose_answers(1, world.cases[name].writes)
                lost[name] = partial(proxy.counts.__getitem__, "lost")

    for name in world.cases:
        lose(name)
    world.publish(run_id, records, rate)
    for part in (5, 2):
        world.await_some(run_id, records // part, lose)
    wrong = _verdicts(world, run_id)
    for name, count in lost.items():
        if not count():
            wrong.setdefault(name, []).append("no answer was lost: nothing is shown")
    return wrong


def it_is_told_to_wait(world: World, run_id: str, records: int, rate: float) -> Wrong:
    """429 with Retry-After, and 503s."""
    busy = [answer(429, Retry_After=str(_ASKED_S)), answer(503), answer(503), answer(429, Retry_After="1")]
    proxies = {name: case.http for name, case in world.cases.items() if isinstance(case.proxy, Proxy)}
    for proxy in proxies.values():
        proxy.requests.clear()
        proxy.next(*busy)
    world.publish(run_id, records, rate)
    wrong = _verdicts(world, run_id)
    for name, proxy in proxies.items():
        left_alone = proxy.left_alone_after("429")
        if len(left_alone) < 2 or left_alone[0] < _ASKED_S or left_alone[1] < 1:
            wrong.setdefault(name, []).append(
                f"asked to wait for {_ASKED_S} s and 1 s, it waited {left_alone}"
            )
    return wrong


def its_server_is_slow(
    world: World, run_id: str, records: int, most_growth_mib: float, patience_s: float = 180.0
) -> Wrong:
    """Nobody but the sink waits; what it cannot send yet waits in the journal, and the bus says so."""
    world.publish(f"{run_id}-before", 20_000, 20_000.0)
    _verdicts(world, f"{run_id}-before", patience_s)
    for case in world.cases.values():
        if isinstance(case.proxy, Proxy):
            case.proxy.always = delay(2.0)
        elif isinstance(case.proxy, TcpProxy):
            case.proxy.delay_s = 1.0
    slowed = [name for name, case in world.cases.items() if case.proxy is not None]
    before = {name: world.sinks[name].memory_mib() for name in slowed}
    world.publish(run_id, records, 50_000.0)
    truth = world.truth(run_id)
    status = world.status()
    assert status is not None
    wrong: Wrong = {}
    for name in slowed:
        said = wrong.setdefault(name, [])
        grown = world.sinks[name].memory_mib() - before[name]
        if grown > most_growth_mib:
            said.append(f"it holds {grown:.0f} MiB more than before")
        if (info := world.info(name)).received >= status.events * 0.9:
            said.append(f"it has {info.received} of {status.events} events, though its server is slow")
        if truth.slowest_s > 0.1:
            said.append(f"the benchmark waited {truth.slowest_s:.3f} s in one call")
    for case in world.cases.values():
        if isinstance(case.proxy, Proxy):
            case.proxy.always = PASS
        elif isinstance(case.proxy, TcpProxy):
            case.proxy.delay_s = 0.0
    for name, said in _verdicts(world, run_id, patience_s).items():
        wrong.setdefault(name, []).extend(said)
    for name in slowed:
        grown = world.sinks[name].memory_mib() - before[name]
        if grown > most_growth_mib:
            wrong[name].append(f"after it has caught up it holds {grown:.0f} MiB more than before")
    return {name: said for name, said in wrong.items() if said}


def it_is_killed(world: World, run_id: str, records: int, rate: float) -> Wrong:
    """SIGKILL, twice in a run, and a start after each."""
    world.publish(run_id, records, rate)

    def kill(name: str) -> None:
        world.sinks[name].kill()
        world.sinks[name].start()

    for part in (6, 2):
        world.await_some(run_id, records // part, kill)
    return _verdicts(world, run_id)


def it_is_ended_during_an_outage(world: World, run_id: str, records: int, rate: float) -> Wrong:
    """SIGTERM while its server is away: it ends in time, says what is left, and goes on from there."""
    for case in world.cases.values():
        case.kill()
    world.publish(run_id, records, rate)
    world.truth(run_id)
    world.wait(lambda: all(world.info(name).received for name in world.sinks))
    for sink in world.sinks.values():
        sink.process.send_signal(signal.SIGTERM)
    wrong: Wrong = {}
    for name, sink in world.sinks.items():
        code = sink.process.wait(20.0)
        if code != EXIT_CUT_OFF or "comes again, from the bus's journal" not in sink.log.read_text():
            wrong[name] = [f"it ends with {code}: {sink.tail()}"]
    for case in world.cases.values():
        case.revive()
    world.await_ready()
    for name, said in _verdicts(world, run_id).items():
        wrong.setdefault(name, []).extend(said)
    return wrong


def everybody_else_is_killed(world: World, run_id: str, records: int, rate: float) -> Wrong:
    """The bus, in the middle of two runs; and the publisher of the first one, which another one follows."""
    first, second = f"{run_id}-first", f"{run_id}-second"
    world.publish(first, records, rate, "stay")
    world.await_some(first, records // 4)
    _restart_bus(world)
    lost = world.truth(first)
    world.publishers[first].kill()
    world.publish(second, records, rate)
    world.await_some(second, records // 4)
    _restart_bus(world)
    wrong = _verdicts(world, second)
    world.await_handled(first)  # it was lost, which nobody knew at once
    for name, case in world.cases.items():
        if not case.overlaps:
            wrong.pop(name, None)
        elif said := case.judge(first, lost):
            wrong.setdefault(name, []).extend(f"the lost run: {each}" for each in said)
    return wrong


def _restart_bus(world: World) -> None:
    world.bus.kill()
    world.bus.start()


def a_row_is_refused(world: World, run_id: str, records: int, rate: float) -> Wrong:
    """One row will never be taken: all others are there, and it is told; then it is mended, and retried."""
    poisoned = records // 2
    refusing = {
        name: case for name, case in world.cases.items() if isinstance(case.proxy, Proxy) and case.has_rows
    }
    for case in refusing.values():
        case.http.poison = POISON.encode()
    world.publish(run_id, records, rate, f"poison={poisoned}")
    truth = world.truth(run_id)
    world.await_handled(run_id)
    receipts = world.receipts(run_id)
    wrong: Wrong = {}
    for name, case in refusing.items():
        said = wrong.setdefault(name, [])
        found = set(case.found(run_id))
        wanted = {f"{run_id}.{number}" for number in range(records)} - {f"{run_id}.{poisoned}"}
        if found != wanted:
            said.append(f"{len(wanted - found)} others are missing, {len(found - wanted)} too many")
        receipt = receipts.get(name)
        failed = 0 if receipt is None else sum(topic.failed for topic in receipt.topics.values())
        if failed != 1:
            said.append(f"{failed} events failed by its receipt: {receipt}")
        letters = world.dead_letters(name)
        kinds = [letter.kind for letter in letters]
        if kinds != [Records.kind]:
            said.append(f"its dead letters are {kinds}")
        elif "row " not in letters[0].error or "poison" not in letters[0].error:
            said.append(f"its dead letter does not say which row, and why: {letters[0].error}")
    for name, case in refusing.items():
        case.http.poison = b""
        world.sinks[name].process.send_signal(signal.SIGTERM)
    for name, case in refusing.items():
        sink = world.sinks[name]
        if (code := sink.process.wait(20.0)) != 0:
            wrong[name].append(f"it ends with {code}: {sink.tail()}")
        if told := _retry(world, case):
            wrong[name].append(told)
        wrong[name] += case.judge(run_id, truth)
    receipts = world.receipts(run_id)
    for name in refusing:
        if name not in receipts or not receipts[name].complete:
            wrong[name].append(f"its last receipt is {receipts.get(name)}")
    return {name: said for name, said in wrong.items() if said}


def its_secret_is_wrong(world: World, run_id: str, patience_s: float = 30.0) -> Wrong:
    """It ends with one line, and nobody else learns of the secret, be it right, wrong, or not there."""
    world.publish(run_id, 500, 5000.0)
    publisher = world.publishers[run_id]
    wait_until(lambda: Path(f"/proc/{publisher.pid}/environ").read_bytes())
    others = _given_to(publisher) + _given_to(world.bus)
    wrong = _verdicts(world, run_id)
    knowing = {name: case for name, case in world.cases.items() if case.secret}
    for name, case in knowing.items():
        sink = world.sinks[name]
        given = Path(f"/proc/{sink.pid}/cmdline").read_bytes()
        sink.process.send_signal(signal.SIGTERM)
        code = sink.process.wait(20.0)
        said = [f"it ends with {code}: {sink.tail()}"] if code else []
        secret = case.secret.encode()
        journal = b"".join(path.read_bytes() for path in world.bus.directory.rglob("*") if path.is_file())
        for what, text in (
            ("its command line", given),
            ("what others are given", others),
            ("what it said", sink.log.read_bytes()),
            ("the bus's output", world.bus.log.read_bytes()),
            ("the journal", journal),
        ):
            if secret in text:
                said.append(f"the secret is in {what}")
        wrong.setdefault(name, []).extend(said)
    for known in (WRONG_SECRET, ""):
        processes = {name: SinkProcess(case, world.bus.address, known) for name, case in knowing.items()}
        for process in processes.values():
            process.log = process.log.with_name(f"sink-{known or 'none'}.log")
            process.environment = process.environment if known else {}
            process.start()
        for name, process in processes.items():
            wrong[name] += _is_told_in_one_line(process, patience_s)
    return {name: said for name, said in wrong.items() if said}


def _given_to(process: PythonProcess) -> bytes:
    """Return a process's environment and command line."""
    return b"".join(Path(f"/proc/{process.pid}/{what}").read_bytes() for what in ("environ", "cmdline"))


def _is_told_in_one_line(process: SinkProcess, patience_s: float) -> list[str]:
    """Return what is wrong with how a sink ends that cannot have the right secret."""
    try:
        code = process.process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return [f"it does not end: {process.tail()}"]
    said = process.log.read_text()
    lines = complaints(said)
    wrong = []
    if code != 2:
        wrong.append(f"it ends with {code}, not 2: {said}")
    if len(lines) != 1 or not lines[0].startswith("phase-bus: "):
        wrong.append(f"it does not say why in one line: {said}")
    if WRONG_SECRET in said:
        wrong.append(f"it says what the secret is: {said}")
    return wrong


def _retry(world: World, case: SinkCase) -> str:
    """Retry all dead letters of a sink; return what went wrong."""
    settings = ",".join(f"{key}={value}" for key, value in case.settings().items())
    sink = world.sinks[case.name]
    done = subprocess.run(
        [
            sys.executable, "-m", "phase_bus", "dead-letters", "retry", "--all", "--consumer", case.name,
            "--with", f"{case.use}:{settings}", "--data", str(world.bus.directory),
            "--address", world.bus.address,
        ],
        env=sink.whole_environment, cwd=ROOT, capture_output=True, text=True, timeout=30.0,
    )  # fmt: skip
    return f"dead-letters retry: {done.stderr}" if done.returncode else ""


def _verdicts(world: World, run_id: str, patience_s: float = 60.0) -> Wrong:
    """Wait for the end of a run, and judge; a sink that has not come to it is wrong as well."""
    world.truth(run_id)
    try:
        world.await_handled(run_id, patience_s)
    except AssertionError as error:
        return {name: [*said, str(error)] for name, said in world.verdicts(run_id).items()}
    return world.verdicts(run_id)
