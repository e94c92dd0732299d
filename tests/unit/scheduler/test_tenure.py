"""How long a leader may answer."""

from __future__ import annotations

from scheduler_svc.domain.tenure import Tenure


def test_a_tenure_ends_before_the_lease_that_began_after_it_was_asked_for() -> None:
    tenure = Tenure(5.0, asked=100.0)
    assert tenure.lasts(104.4)
    assert not tenure.lasts(104.6)
    assert tenure.left(110.0) == 0.0


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    tenure = Tenure(5.0, asked=100.0)
    tenure.granted(103.0)
    assert tenure.lasts(107.4)
    assert not tenure.lasts(107.6)


def test_several_renewals_may_fail_before_a_tenure_ends() -> None:
    tenure = Tenure(5.0, asked=0.0)
    assert tenure.left(0.0) > 4 * tenure.renew_every
