"""Stage 0: which encoder training starts from, before any work is done."""

from components import component


@component
def pin_encoder(encoder: str, profile: str, overrides: dict) -> str:
    """Name the content of the encoder by a hash, so that training on from the same encoder again can be skipped.

    Args:
        encoder: bundled, a .safetensors file or folder, s3://..., a version or alias of the registry; empty for none.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.

    Returns:
        the SHA-256 of its file; empty for none.
    """
    from contrique.config import resolve
    from contrique.registry.start import pin_encoder

    return pin_encoder(encoder, resolve(profile, overrides).registry)
