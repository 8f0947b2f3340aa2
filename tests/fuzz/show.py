"""Print one fuzzed submit again, by door, seed and number: `python -m tests.fuzz.show nats 1 4711`."""

import sys

from tests.fuzz import bodies, over_http, over_nats

if __name__ == "__main__":
    door, seed, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    maker = over_nats.make if door == "nats" else over_http.make
    sys.stdout.write(f"{maker(seed, number, bodies.pool(seed))}\n")
