"""Run all damages once, and the random ones again in every further round."""

import argparse
import faulthandler
import logging
import sys
import time

from tools.damage_campaign.commands import COMMANDS
from tools.damage_campaign.datasets import DATASETS, MASKS
from tools.damage_campaign.results import RESULTS
from tools.damage_campaign.round import FAULT, LIMIT, cases, report, run

READERS = [*MASKS, *DATASETS, *RESULTS, *COMMANDS]


def main() -> None:
    """Run the campaign over all readers, or those whose names begin with a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="so many draws of the random damages")
    parser.add_argument("--share", type=float, default=1.0, help="only so much of the damages, at random")
    parser.add_argument("--reader", default="", help="only readers whose names begin like that")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    outcomes = []
    for reader in [one for one in READERS if one.name.startswith(asked.reader)]:
        begun = time.perf_counter()
        for number in range(asked.rounds):
            chosen = cases(reader, asked.share, asked.seed + number, drawn_only=number > 0)
            faulthandler.dump_traceback_later(2 * LIMIT * max(len(chosen), 1), exit=True)  # where no signal is heard
            outcomes += run(reader, chosen, asked.seed + number)
        print(f"{reader.name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    faulthandler.cancel_dump_traceback_later()
    report(outcomes)
    sys.exit(any(outcome.kind == FAULT for outcome in outcomes))


if __name__ == "__main__":
    main()
