"""BEGAN: Boundary Equilibrium Generative Adversarial Networks (Berthelot, Schumm, Metz 2017, arXiv 1703.10717)."""

__version__ = "0.1.0"
