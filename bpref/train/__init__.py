"""Training: data, an optimiser by name, one compiled loop over epochs, and what is written to disk."""

from bpref.train.data.split import Split, split
from bpref.train.data.table import Table
from bpref.train.data.text import read_text
from bpref.train.fitted import Diverged, Epoch, Fitted
from bpref.train.loop import fit

__all__ = ["Diverged", "Epoch", "Fitted", "Split", "Table", "fit", "read_text", "split"]
