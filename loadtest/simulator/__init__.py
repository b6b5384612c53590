"""An engine that behaves as vLLM or SGLang do, over real HTTP, without a model.

What it answers names the weights that answered, so that a test can tell versions apart; what it gets wrong,
it gets wrong when told to (`FaultKind`). `tests/e2e/test_contract.py` holds it to the real engines.
"""

from loadtest.simulator.answers import BASE_MARK, marks_in, weights_mark
from loadtest.simulator.engine import SimulatedEngine
from loadtest.simulator.faults import FaultKind
from loadtest.simulator.reference import base_answer, reference_generation

__all__ = [
    "BASE_MARK",
    "FaultKind",
    "SimulatedEngine",
    "base_answer",
    "marks_in",
    "reference_generation",
    "weights_mark",
]
