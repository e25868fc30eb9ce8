"""What the learner can be made of: BMU-MoCo and its rivals, each a short file behind one interface (`base.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from streamlearn.methods.base import Method, View
from streamlearn.methods.bmu import Bmu
from streamlearn.methods.ctp import Ctp
from streamlearn.methods.inbatch import InBatch
from streamlearn.methods.lwf import Lwf
from streamlearn.methods.moco import Moco

__all__ = ["METHODS", "Method", "View"]

#: By the name in `learner.method`.
METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {"bmu": Bmu, "moco": Moco, "inbatch": InBatch, "lwf": Lwf, "ctp": Ctp}
)
