"""privacy: what training by `private_gradient` has told of any one example.

A training is (epsilon, delta)-private if, of two data sets of which one has one example more, nothing that can be said
of the parameters is more than e^epsilon times as probable with the one as with the other, but for a probability delta.

A step adds, to a sum in which an example counts for at most C, noise of deviation sigma C, and sees each example with
probability q. What T such steps spend together is accounted for by the distribution of the privacy loss of each, T-fold
convolved, to all digits that matter ("pld": Koskela et al., arXiv:1906.03049; Doroshenko et al., arXiv:2207.04380), or
bounded from above by Rényi divergences ("rdp": Mironov et al., arXiv:1908.10530), as older tables are.

The examples of every batch must be drawn each by itself, with probability q (Poisson sampling), or all be used (q = 1).
Batches of one size, of shuffled data, are not that; they are commonly reported as if they were.
"""

from bpref.checks.hyperparameters import is_number, require_choice, require_positive, require_size


def privacy_spent(
    multiplier: float,
    steps: int,
    delta: float,
    rate: float | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    accountant: str = "pld",
) -> float:
    """Epsilon, after so many steps with `private_gradient`.

    It needs the package dp-accounting: `pip install "bpref[private]"`.

    Args:
      multiplier: sigma, as of `private_gradient`.
      steps: T, the number of updates.
      delta: such as 1 over ten times the number of examples.
      rate: q, the probability of each example to be in a batch; or, in its place,
      batch_size, examples: its mean size and the size of the data, q being the one over the other.
      accountant: "pld", or "rdp" for an upper bound in less time.

    Example:
      >>> round(bpref.privacy_spent(1.1, steps=14062, delta=1e-5, batch_size=256, examples=60000), 2)
      2.38

    Raises:
      ValueError: an argument is out of its range; not one of rate and both of batch_size and examples is given.
      ImportError: dp-accounting is not installed.
    """
    who = "privacy_spent"
    multiplier = require_positive(who, "multiplier", multiplier)
    steps = require_size(who, "steps", steps)
    if not is_number(delta) or not 0 < delta < 1:
        raise ValueError(f"{who}: delta is {delta!r}, expected a number between 0 and 1")
    q = _rate(who, rate, batch_size, examples)
    require_choice(who, "accountant", accountant, ("pld", "rdp"))
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ImportError:
        raise ImportError(f'{who} needs the package dp-accounting: pip install "bpref[private]"') from None
    spent = pld.PLDAccountant() if accountant == "pld" else rdp.RdpAccountant()
    step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(multiplier))
    return float(spent.compose(step, steps).get_epsilon(delta))


def _rate(who: str, rate: float | None, batch_size: int | None, examples: int | None) -> float:
    if (rate is None) == (batch_size is None) or (batch_size is None) != (examples is None):
        given = {"rate": rate, "batch_size": batch_size, "examples": examples}
        came = ", ".join(name for name, v in given.items() if v is not None) or "nothing"
        raise ValueError(f"{who}: {came} is given, expected either rate, or both batch_size and examples")
    if rate is not None:
        if not is_number(rate) or not 0 < rate <= 1:
            raise ValueError(f"{who}: rate is {rate!r}, expected a positive number up to 1")
        return float(rate)
    B, N = require_size(who, "batch_size", batch_size), require_size(who, "examples", examples)
    if B > N:
        raise ValueError(f"{who}: batch_size is {B}, expected 1 ... {N}, the number of examples")
    return B / N
