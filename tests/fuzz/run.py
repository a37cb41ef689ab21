"""Fuzz every reader of what strangers hand in, with inputs drawn anew, for as long as one likes.

    python tests/fuzz/run.py --minutes 10 [--target ridge.npz --target "picture gif"]

Each target gets its share of the time, in a process of its own that is killed if one input takes it longer than a
minute. An input that does what none may (tests/fuzz/sandbox.py) is kept below build/fuzz, and said once for each place
in the code that it failed at. The exit status is 1 if there was one; each goes to tests/fuzz/crashes and is a test
from then on.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
_PATIENCE = 60.0  # seconds that a process may be busy with one input
_BATCH = 200  # inputs of one seed


def fuzz(name: str, seconds: float, place: Path, queue: Any) -> None:
    """Try inputs of one target; runs in a process of its own."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from sandbox import try_input
    from targets import TARGETS

    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries' warnings and bars of progress
    target, attempts, places = TARGETS[name], 0, set[str]()
    current, inputs = place / "current", target.inputs()
    end = time.monotonic() + seconds

    def attempt(data: bytes) -> None:
        nonlocal attempts
        if time.monotonic() > end:
            return
        current.write_bytes(data)
        attempts += 1
        queue.put((attempts, None))
        try:
            try_input(target.read, data)
        except Exception as error:
            if (line := _describe(error)) not in places:
                places.add(line)
                path = place / f"{len(places)}.input"
                path.write_bytes(data)
                queue.put((attempts, f"{line}; input: {path}"))

    quiet = settings(max_examples=_BATCH, phases=[Phase.generate], database=None, deadline=None,
                     suppress_health_check=list(HealthCheck))  # fmt: skip
    while time.monotonic() < end:
        seed(random.SystemRandom().getrandbits(63))(quiet(given(inputs)(attempt)))()
    queue.put((attempts, None))


def _describe(error: BaseException) -> str:
    """What happened, and where in the product."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    own = next((frame for frame in reversed(frames) if "/contrique/" in frame.filename), frames[-1])
    return f"{' '.join(str(error).split())[:200]} at {Path(own.filename).name}:{own.lineno}"


def run_target(name: str, seconds: float, place: Path) -> dict[str, Any]:
    """Fuzz one target.

    Returns:
        `tried`, `seconds` and `faults`.
    """
    place.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=fuzz, args=(name, seconds, place, queue))
    start = last = time.monotonic()
    attempts, faults = 0, list[str]()
    process.start()
    while process.is_alive() or not queue.empty():
        while not queue.empty():
            attempts, fault = queue.get()
            last = time.monotonic()
            faults += [fault] if fault else []
        if time.monotonic() - last > _PATIENCE:
            process.kill()
            faults.append(f"no answer within {_PATIENCE:.0f} s; input: {place / 'current'}")
            break
        time.sleep(0.02)
    process.join()
    if process.exitcode and not faults:
        faults.append(f"the process ended with status {process.exitcode}; input: {place / 'current'}")
    return {"tried": attempts, "seconds": time.monotonic() - start, "faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="in all; default: 10")
    parser.add_argument("--target", action="append", help="one reader, several times for several; default: all")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for inputs; default: build/fuzz")
    options = parser.parse_args()
    from targets import TARGETS

    names = options.target or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}; there are: {', '.join(TARGETS)}")
    results = {}
    print("| target | inputs | minutes | faults |\n|---|---|---|---|", flush=True)
    for name in names:
        place = options.out.absolute() / name.replace(" ", "-").replace("/", "-")
        result = results[name] = run_target(name, 60 * options.minutes / len(names), place)
        print(f"| {name} | {result['tried']} | {result['seconds'] / 60:.1f} | {len(result['faults'])} |", flush=True)
        for fault in result["faults"]:
            print(f"  {name}: {fault}", file=sys.stderr, flush=True)
    total, faults = (sum(map(count, results.values())) for count in (lambda r: r["tried"], lambda r: len(r["faults"])))
    print(f"| all | {total} | {sum(result['seconds'] for result in results.values()) / 60:.1f} | {faults} |")
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
