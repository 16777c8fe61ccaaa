"""What `calibrate` found out about a policy."""

import dataclasses
from typing import Any, Self

from keras_exitens import _checks as checks
from keras_exitens._tables import Report, aligned

__all__ = ["Calibration"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(Report):
    """What a policy does to the images that it was chosen on, and how it was chosen.

    Attributes:
        budget_met: bool, whether the budget is kept.
        accuracy: float.
        full_accuracy: float, that of the final exit alone.
        accuracy_drop: float, `full_accuracy - accuracy`.
        cost: float, mean cost of an image, as a fraction of the network without early exits.
        shares: float per exit, share of the images that leave there.
        images: int, how many these figures are of.
        max_accuracy_drop, cost_budget, confidence, schedule, seed: the arguments of `calibrate`.
        certified: bool, whether a policy with early exits passed; `None` without `confidence`, as are:
        p_value: float, of the policy that passed; `None` where none did.
        tests: int, how many policies were tested.
        risk: float, share of the images on which the full model is right and the policy wrong.
    """

    budget_met: bool
    accuracy: float
    full_accuracy: float
    accuracy_drop: float
    cost: float
    shares: tuple[float, ...]
    images: int
    max_accuracy_drop: float | None = None
    cost_budget: float | None = None
    confidence: float | None = None
    schedule: str | None = None
    seed: int = 0
    certified: bool | None = None
    p_value: float | None = None
    tests: int | None = None
    risk: float | None = None

    @classmethod
    def from_dict(cls, figures: dict[str, Any]) -> Self:
        needed = ("budget_met", "accuracy", "full_accuracy", "accuracy_drop", "cost", "shares", "images")
        missing = [name for name in needed if name not in figures]
        if missing:
            raise checks.error(
                "This is no calibration of a policy.",
                expected=f"a dict with {', '.join(needed)}",
                received=f"one without {', '.join(missing)}",
                fix="policy = kx.calibrate(records, cost, max_accuracy_drop=0.01)",
            )
        return super().from_dict({**figures, "shares": tuple(figures["shares"])})

    def table(self) -> str:
        """The budget, and what the policy does."""
        if self.cost_budget is not None:
            budget = f"at most {self.cost_budget:.1%} of the cost"
        else:
            budget = f"at most {self.max_accuracy_drop or 0:.2%} less accurate"
        if self.confidence is not None:
            verdict = "certified" if self.certified else "not certified"
            budget += f", {verdict} with confidence {self.confidence:.0%}"
        rows = [
            ("budget", budget + ("" if self.budget_met else " (not met)")),
            ("accuracy", f"{self.accuracy:.2%} (full network {self.full_accuracy:.2%})"),
            ("cost", f"{self.cost:.1%} of the full network's"),
            ("shares of the exits", ", ".join(f"{share:.1%}" for share in self.shares)),
            ("images", f"{self.images:,}"),
        ]
        return aligned(rows, numbers=False)
