"""pytest explains the asserts of test files only, unless it is told of others."""

import pytest

pytest.register_assert_rewrite(
    "adapter_data",
    "contracts",
    "changes",
    "epoch_contract",
    "example_runs",
    "fuzz",
    "jax_data",
    "maps_of_0_9",
    "model",
    "our_threads",
    "plain_reader",
    "power",
    "take_contract",
    "torch_batches",
    "tf_data",
    "tf_fits",
    "torch_data",
)
