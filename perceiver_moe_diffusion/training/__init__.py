"The training loop and its tasks."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "loop": ["EMA", "NonFiniteLoss", "StopOnCtrlC", "TrainerData", "TrainingModule", "warmup_cosine"],
    "tasks": ["ClassifierModule", "DiffusionModule", "UpscalingModule"],
})
