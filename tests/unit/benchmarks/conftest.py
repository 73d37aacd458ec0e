"""The scripts of `benchmarks/` import each other by name, as Python does when one of them is run."""

import sys

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
