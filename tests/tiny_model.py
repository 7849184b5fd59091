"""A DiffSplat checkpoint of a few thousand parameters in the layout of the shipped one."""

from pathlib import Path

from safetensors.torch import save_file


def write_checkpoint(folder: Path, channels: int = 4, views: int = 2, size: int = 16) -> Path:
    import torch
    from diffusers import PixArtTransformer2DModel

    from align3d.models.nets.codec import PatchCodec
    from align3d.models.nets.text import TextEncoder

    torch.manual_seed(0)
    parts = {
        "transformer": PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=channels + 6,
            out_channels=channels,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=size // 8,
            patch_size=2,
            caption_channels=8,
            interpolation_scale=1,
            use_additional_conditions=False,
        ),
        "gs_vae": PatchCodec(
            latent_channels=channels,
            num_views=views,
            sample_size=size,
            encoder_channels=(8, 8),
            decoder_dim=16,
            decoder_layers=1,
            decoder_heads=2,
            decoder_channels=8,
        ),
        "text_encoder": TextEncoder(("red", "mug"), buckets=16, max_words=6, max_pieces=4, dim=8, layers=1, heads=2),
    }
    for name, part in parts.items():
        (folder / name).mkdir(parents=True)
        part.save_config(folder / name)
        tensors = {k: v.half().contiguous() for k, v in part.state_dict().items()}
        save_file(tensors, folder / name / "diffusion_pytorch_model.safetensors")
    return folder
