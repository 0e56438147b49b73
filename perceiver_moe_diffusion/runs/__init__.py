"From settings to a folder with a trained model: schemas, checks, training, report, sweeps, commands."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "build": ["build_run", "instantiate_node", "make_pipeline"],
    "cli": ["pmd_evaluate", "pmd_sample", "pmd_train"],
    "overrides": ["load_config"],
    "report": ["evaluate_run", "results_table"],
})
