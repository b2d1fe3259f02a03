"""How many threads torch's operations and our own use, inside the contexts that limit them."""

import pytest
import torch

from mupscale_cli.engine.threads import num_threads, num_workers, one_thread, one_worker


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_operations_have_one_thread_and_the_rest_is_left_to_ours():
    with one_thread():
        with one_thread():
            assert (torch.get_num_threads(), num_threads()) == (1, 2)
        assert (torch.get_num_threads(), num_threads()) == (1, 2)
    assert (torch.get_num_threads(), num_threads()) == (2, 2)


def test_one_worker_leaves_nothing_to_others():
    with one_worker(), one_thread():
        assert (torch.get_num_threads(), num_threads(), num_workers()) == (1, 1, 1)
    assert (torch.get_num_threads(), num_threads()) == (2, 2)
