"""Names under which a search writes things down in its Optuna study. No torch here."""

from __future__ import annotations

VALID, PARAMS = "valid", "params"
"""User attributes of a completed trial: its score and its size, whatever the objective. Other costs
that are objectives go by their own names."""
EPOCHS, PARENT = "epochs", "parent"
"""User attributes of a trial: epochs that it trained, and whose weights it began with."""
RETRY_OF, ATTEMPT = "retry_of", "attempt"
"""User attributes of a trial that is tried again: the number of the first attempt, and how often
its worker has died."""
RESUMED = "resumed_epochs"
"""User attribute: how many of its epochs an earlier attempt trained and has on record."""
WORK = "work"
"""User attribute of a trial: a digest of its plan, parent and seed, which fix what it comes to."""
SURPLUS = "surplus"
"""User attribute of a trial that was asked for when the budget had been used up meanwhile."""
FIXED = "fixed_params"
"""System attribute, Optuna's own, of a trial that was in the queue: the parameters it is given."""
CAUSE = "cause"
"""User attribute of a failed trial: why it failed, in a line."""
INTERRUPTED = "interrupted"
"""The cause of a trial that its user stopped."""
