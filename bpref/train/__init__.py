"""Training: data, an optimiser by name, one compiled loop over epochs, and what is written to disk."""

from bpref.train.fitted import Diverged, Epoch, Fitted
from bpref.train.loop import fit
from bpref.train.split import Split, split
from bpref.train.table import Table

__all__ = ["Diverged", "Epoch", "Fitted", "Split", "Table", "fit", "split"]
