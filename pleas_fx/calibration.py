from dataclasses import dataclass
import torch
from torch import Tensor
class PerSource:
    def __init__(self, sources): self.sources=tuple(sources)
@dataclass(frozen=True, slots=True)
class Batches:
    batches: tuple
    owners: tuple
def collect(data, *, inputs=1, batch_size=64, expected=None):
    if isinstance(data, PerSource):
        b=[];o=[]
        for s,d in enumerate(data.sources):
            c=collect(d); b+=c.batches; o+=[s]*len(c.batches)
        return Batches(tuple(b),tuple(o))
    b=tuple((x,) for x in data.split(batch_size))
    return Batches(b,(None,)*len(b))
