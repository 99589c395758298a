"""Kernels of a test's own on an executor's CUDA stream: some that only take time, one that fails."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

SOURCE = rb"""
.version 8.0
.target sm_80
.address_size 64
.visible .entry delay(.param .u64 nanoseconds) {
  .reg .pred %early;
  .reg .u64 %wait, %begin, %now;
  ld.param.u64 %wait, [nanoseconds];
  mov.u64 %begin, %globaltimer;
again:
  mov.u64 %now, %globaltimer;
  sub.u64 %now, %now, %begin;
  setp.lt.u64 %early, %now, %wait;
  @%early bra again;
  ret;
}
.visible .entry fault() { trap; }
"""


class StreamKernels:
    """stream: of an executor that has run a step, so that its device is open."""

    def __init__(self, stream: int) -> None:
        self._stream, self._other = ctypes.c_void_p(stream), ctypes.c_void_p()
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), 0)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", ctypes.byref(self._other), 1)  # 1: waits for no other stream
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(SOURCE))
        self._functions = {}
        for name in ("delay", "fault"):
            self._functions[name] = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(self._functions[name]), module, name.encode())

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        assert status == 0, f"{name} failed with {status}"

    def _launch(self, name: str, stream: ctypes.c_void_p, blocks: int = 1, nanoseconds: int = 0) -> None:
        waited = ctypes.c_uint64(nanoseconds)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(waited))
        self._call("cuCtxSetCurrent", self._context)  # any thread may call
        self._call("cuLaunchKernel", self._functions[name], blocks, 1, 1, 256, 1, 1, 0, stream, parameters, None)

    def delay(self, seconds: float) -> None:
        """What is enqueued next waits so long."""
        self._launch("delay", self._stream, nanoseconds=int(seconds * 1e9))

    def fault(self) -> None:
        """The device is lost to this process when it comes to this."""
        self._launch("fault", self._stream)

    @contextmanager
    def jitter(self, seed: int, between: bool) -> Iterator[None]:
        """Kernels that hold some multiprocessors up at random. between: and delays at random places of the stream,
        where no graph is captured meanwhile, as a capture is not for two threads."""
        ended = threading.Event()
        dice = np.random.default_rng(seed)

        def run() -> None:
            while not ended.is_set():
                nanoseconds = int(dice.choice([0, 5_000, 50_000, 400_000]))
                self._launch("delay", self._other, blocks=int(dice.integers(1, 600)), nanoseconds=nanoseconds)
                if between:
                    self._launch("delay", self._stream, nanoseconds=int(dice.choice([0, 5_000, 50_000, 400_000])))
                time.sleep(float(dice.exponential(200e-6)))

        thread = threading.Thread(target=run, name="jitter")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(30)
