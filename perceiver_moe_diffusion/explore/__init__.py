"Pictures to touch: guidance, routing, attention maps, forward process."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "attention_maps": ["attention_explorer", "attention_figure", "read_by_latents", "read_by_queries",
        "record_attention", "show_latent_maps"],
    "forward_process": ["forward_explorer", "forward_figure", "log_snr"],
    "guidance_explorer": ["GuidanceExplorer", "SamplingRequest", "guidance_strip", "run_request"],
    "patches": ["patch_maps", "show_patches"],
    "routing": ["RoutingRecord", "co_activation", "record_routing", "router_statistics", "show_classes",
        "show_co_activation", "show_time"],
    "widgets": ["LatestTaskWorker", "LiveFigure"],
})
