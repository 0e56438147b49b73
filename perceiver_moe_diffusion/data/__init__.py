"Images, texts, questions; splits and batches that depend on nothing but a seed and a number."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "batches": ["Batch", "CropFlip", "StepLoader", "keep_classes", "split_indices", "subsample_per_class"],
    "image_folders": ["image_folder"],
    "images": ["ImageSet", "cifar10", "digits", "fashion_mnist", "mnist", "resized"],
    "module": ["DataModule"],
    "questions": ["Question", "QuestionSet", "digit_questions"],
    "texts": ["TextSet", "docstrings", "text_csv"],
})
