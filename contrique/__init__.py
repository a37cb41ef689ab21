"""CONTRIQUE: no-reference image quality from contrastive learning (Madhusudana et al., IEEE TIP 2022)."""

__version__ = "0.1.0"
