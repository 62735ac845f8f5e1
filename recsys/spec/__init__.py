"""One spec, from which schemas, transform, model, metrics and requests derive."""

from recsys.spec.change import change
from recsys.spec.fingerprint import covered, fingerprint, fingerprints
from recsys.spec.load import dumps, load, loads
from recsys.spec.places import differences
from recsys.spec.records import Feature, Spec, Task

__all__ = [
    "Feature",
    "Spec",
    "Task",
    "change",
    "covered",
    "differences",
    "dumps",
    "fingerprint",
    "fingerprints",
    "load",
    "loads",
]
