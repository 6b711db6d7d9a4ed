"""The memory that the engine's results are leased from."""

from __future__ import annotations

import torch

from fastadv.engine.pool import Pool

SHAPE = (64, 1024)


def lease(pool: Pool) -> torch.Tensor:
    return pool.empty(SHAPE, torch.float32)


def test_what_no_one_holds_is_leased_again_and_what_someone_holds_is_not() -> None:
    pool = Pool()
    first = lease(pool)
    at = first.data_ptr()
    view = first[3:].detach()
    del first
    assert lease(pool).data_ptr() != at
    del view
    assert lease(pool).data_ptr() == at


def test_what_another_process_may_read_is_given_up() -> None:
    pool = Pool()
    first = lease(pool)
    first.share_memory_()
    at = first.data_ptr()
    del first
    second = lease(pool)
    assert second.data_ptr() != at
    assert not second.is_shared()


def test_what_was_resized_is_given_up() -> None:
    pool = Pool()
    first = lease(pool)
    first.untyped_storage().resize_(128)
    del first
    second = lease(pool)
    assert second.untyped_storage().nbytes() >= 4 * second.numel()
    second.fill_(1.0)


def test_torchs_default_device_and_dtype_are_not_its_own() -> None:
    with torch.device("meta"):
        lent = lease(Pool())
    assert (lent.device.type, lent.dtype, lent.shape) == ("cpu", torch.float32, SHAPE)
