"""Take a PyTorch script from a laptop to a managed cloud and back, with the bill known first."""

__version__ = "0.1.0"
