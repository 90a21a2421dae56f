"""A map as a list: everything that can be done to it, with faults, and what it has to show then.

`machine.Machine` does the rules in any order to one folder and several handles; `kinds.KINDS` says what it has to know
of each kind of map. The parts inherit from each other: `state.State`, then `writing`, `building` and `moving`, then
`machine`.
"""

from hypothesis import HealthCheck, Phase, settings

# Without shrinking, which takes minutes here: add Phase.shrink to make a failure smaller.
quiet = settings(
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
