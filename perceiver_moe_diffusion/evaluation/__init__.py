"How good is a model? Metrics with floors, and results that stay readable."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "generate": ["evaluate", "routings_over_time", "show_samples"],
    "metrics": ["CLASSIFIER_STEPS", "FeatureSet", "Mean", "SmallCNN", "bootstrap_mean", "density_coverage",
        "frechet_distance", "is_copy", "quality", "train_classifier", "within_class_diversity"],
    "pretrained": ["Judge", "export_pretrained", "judge_of", "record_of"],
    "results": ["archive_run", "means_by", "read_results", "seed_mean", "show_comparison", "table_of"],
    "upscale": ["psnr", "upscale_quality"],
})
