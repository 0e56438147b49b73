"Two test workers on two cores: one thread each, here and in the kernels and processes that tests start."
import os
import signal

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "agg")
# A shell starts its background jobs with Ctrl-C ignored, and they pass that on: the tests of Ctrl-C need it to mean
# something.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    "The notebooks, a minute each, come first in both halves, so that neither worker waits for the other's last one."
    long = [item for item in items if item.path.name == "test_notebooks.py"]
    short = [item for item in items if item.path.name != "test_notebooks.py"]
    middle = len(short) // 2
    items[:] = [*long[::2], *short[:middle], *long[1::2], *short[middle:]]
