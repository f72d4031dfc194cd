"""Write the job of a benchmark, for `cir/backbones/lavis.py` to encode in LAVIS's environment.

python experiments/lavis/job.py cirr/val --data DATASETS --out job.json
"""

import argparse
from pathlib import Path

from cir import data
from cir.backbones.lavis import write_job
from cir.prompts import JOINERS


def main():
    parser = argparse.ArgumentParser(description="Write what LAVIS is to encode for a benchmark.")
    parser.add_argument("benchmark", help="for example cirr/val, circo/val, fashioniq/dress/val")
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--join", choices=sorted(JOINERS), default="first_and_second", help="for FashionIQ's captions")
    given = parser.parse_args()
    write_job(given.out, data.load(given.benchmark, given.data), JOINERS[given.join])


if __name__ == "__main__":
    main()
