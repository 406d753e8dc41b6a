"""One forward on several devices, which share tokens or the samples of a batch; one decode, whose tiles they share."""

from .deal import Deal
from .group import Group
from .loan import Borrowed, Loan
from .mesh import Mesh, rows_of
from .share import Ulysses, spread

__all__ = ["Borrowed", "Deal", "Group", "Loan", "Mesh", "Ulysses", "rows_of", "spread"]
