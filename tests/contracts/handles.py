"""Handles: closed, copied, sent to other processes, shared by threads."""

import copy
import multiprocessing
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from contracts.comparison import assert_same, same
from contracts.indices import N
from contracts.kind import KindContract, tagged
from contracts.processes import extend_by_one, in_process, read_all, read_pickled
from mmap_ninja.errors import MapChangedError, MapClosedError, MapNotFoundError


class HandleContract(KindContract):
    """Tests of the life of a handle."""

    # -- the end -----------------------------------------------------------------------------------------------------

    def test_closed_map_refuses_everything(self, m, path):
        held = m[0]
        m.close()
        m.close()
        uses = [
            lambda: m[0],
            lambda: m[-1],
            lambda: m[N],
            lambda: m[:],
            lambda: m[[0]],
            lambda: m[np.zeros(N, bool)],
            lambda: len(m),
            lambda: list(m),
            lambda: list(reversed(m)),
            lambda: held in m,
            lambda: m.take([0]),
            lambda: m.window(0, 0, 0),
            lambda: m.will_need([0]),
            lambda: m.lengths,
            lambda: m.shapes,
            lambda: m.starts,
            lambda: m.ends,
            lambda: m.dtype,
            lambda: m.nbytes,
            lambda: m.metadata,
            lambda: setattr(m, "metadata", {}),
            lambda: m.append(self.more[0]),
            lambda: m.extend(self.more),
            lambda: m.__setitem__(0, self.samples[0]),
            lambda: m.flush(),
            lambda: m.refresh(),
            lambda: pickle.dumps(m),
            lambda: m.__enter__(),
        ]
        for number, use in enumerate(uses):
            with pytest.raises(MapClosedError, match="was closed"):
                assert use() is number, f"use {number} of a closed map is not refused"
        assert same(held, self.all_read()[0])
        assert_same(self.kind(path), self.all_read())

    def test_context_manager(self, path):
        with self.make(path) as m:
            m.append(self.more[0])
            assert len(m) == N + 1
        with pytest.raises(MapClosedError, match="closed"):
            m[0]
        with pytest.raises(ZeroDivisionError), self.kind(path) as m:
            raise ZeroDivisionError
        with pytest.raises(MapClosedError, match="closed"):
            m[0]

    # -- pickling, processes, threads --------------------------------------------------------------------------------

    def test_pickle_is_a_path(self, m, path):
        other = pickle.loads(pickle.dumps(m))
        assert type(other) is self.kind
        assert other.mode == m.mode
        assert_same(other, self.all_read())
        small = len(pickle.dumps(m))
        for _ in range(6):
            m.extend(self.all_read(list(m)) if not self.options else self.samples * 20)
        assert small <= len(pickle.dumps(m)) + 8 <= small + 32
        assert small < 2048

    def test_pickle_keeps_options(self, path):
        self.make(path)
        m = pickle.loads(pickle.dumps(self.kind(path, mode="r+", wrapper_fn=tagged, copy_before_wrapper_fn=False)))
        assert m.mode == "r+"
        assert m.copy_before_wrapper_fn is False
        assert m[0][0] == "wrapped"

    def test_pickled_handle_keeps_its_snapshot(self, m):
        raw = pickle.dumps(m)
        m.extend(self.more)
        other = pickle.loads(raw)
        assert_same(other, self.all_read())
        assert_same(other[:], self.all_read())
        assert len(other.lengths) == N
        assert other.nbytes == int(other.ends[-1]) * other.dtype.itemsize
        other.refresh()
        assert_same(other, self.all_read(self.samples + self.more))

    def test_copies_are_handles_of_the_same_snapshot(self, m):
        for other in (copy.copy(m), copy.deepcopy(m)):
            assert other is not m
            assert_same(other, self.all_read())

    def test_pickle_of_a_replaced_map(self, m, path):
        raw = pickle.dumps(m)
        self.make(path)
        with pytest.raises(MapChangedError, match="was replaced since this handle was made; open it again"):
            pickle.loads(raw)

    def test_pickle_of_a_map_that_is_gone(self, m, path):
        raw = pickle.dumps(m)
        path.rename(path.with_name("moved"))
        with pytest.raises(MapNotFoundError, match="there is no map at"):
            pickle.loads(raw)

    def test_pickle_of_an_empty_map(self, path):
        m = pickle.loads(pickle.dumps(self.kind(path)))
        assert len(m) == 0
        assert not path.exists()

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_workers_read_the_same_snapshot(self, m, path, method):
        raw = pickle.dumps(m)
        self.kind(path).extend(self.more)
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, context) as pool:
            assert_same(pool.submit(read_all, m).result(), self.all_read())
            assert_same(pool.submit(read_pickled, raw).result(), self.all_read())
            self.make(path)
            with pytest.raises(MapChangedError, match="was replaced since this handle was made"):
                pool.submit(read_pickled, raw).result()

    def test_forked_worker_may_write(self, m, path):
        assert in_process(extend_by_one, m, self.more[0]) == N + 1
        m.append(self.more[1])
        assert_same(m, self.all_read([*self.samples, *self.more[:2]]))

    def test_threads_read_while_the_map_grows(self, m):
        expected = self.all_read()

        def check(_):
            for i in range(N):
                assert same(m[i], expected[i])
            assert_same(m.take(range(N)), expected)

        with ThreadPoolExecutor(4) as pool:
            checks = [pool.submit(check, k) for k in range(40)]
            for _ in range(5):
                m.extend(self.more, sync=False)
                m.refresh()
            for done in checks:
                done.result()
        assert len(m) == N + 15

    # -- warnings ----------------------------------------------------------------------------------------------------

    def test_ordinary_use_warns_of_nothing(self, path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            m = self.make(path)
            m.extend(self.more)
            list(m)
            m.close()
