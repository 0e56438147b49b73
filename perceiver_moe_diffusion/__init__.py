"A Perceiver IO with a mixture of experts as a guided diffusion model: notebooks to read, a package to use."
__version__ = "0.3.1"


def __getattr__(name):
    "`from perceiver_moe_diffusion import from_pretrained`; PyTorch is imported only then."
    if name == "from_pretrained":
        from .pipeline import from_pretrained
        return from_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
