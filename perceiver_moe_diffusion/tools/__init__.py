"Benchmarks, and how the repository makes itself."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "architecture": ["ROOMS", "read_imports"],
    "bench": ["take_turns"],
    "benchmarks": ["pmd_bench"],
    "dev": ["pmd_dev"],
    "workflow": ["run_notebook"],
})
