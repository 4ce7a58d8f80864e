"""The word of each architecture, written by hand from its definition: the depths of its stages and the parts of its blocks.

``a`` attention, ``c`` convolution, ``m`` MLP, ``b`` blur (pooling), one group per resolution.  A block that changes the
resolution or the width has no skip connection in some families (EfficientNet) and a projected one in others (ResNet).
"""

import hashlib

import pytest
import timm
import torch
import torchvision.models as tv
import transformers as hf
from timm.models.vision_transformer import ParallelScalingBlock
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from backlight.tracing.find import units
from backlight.tracing.hooks import check
from backlight.tracing.tap import spell


def timm_model(name, **arguments):
    return lambda: timm.create_model(name, num_classes=4, **arguments)


def hf_model(kind, **settings):
    """A model of the transformers library from a small configuration, without the Hub."""

    def make():
        config = getattr(hf, f"{kind}Config")(num_labels=4, **settings)
        return getattr(hf, f"{kind}ForImageClassification")(config)

    return make


def am(depth):
    return "am" * depth


# Small, because widths do not change the word.
FOUR = (8, 16, 24, 32)
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2], "window_size": 2}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 3]}

#: name -> (word, maker, side of the image)
MODELS = {
    # timm: convolutions
    "resnet18": ("cc cc cc cc", timm_model("resnet18"), 32),
    "resnet50": ("ccc cccc cccccc ccc", timm_model("resnet50"), 64),
    "resnetv2_18": ("cc cc cc cc", timm_model("resnetv2_18"), 32),
    "legacy_seresnet18": ("cc cc cc cc", timm_model("legacy_seresnet18"), 32),  # squeeze and excitation is not attention
    "gcresnext26ts": ("cc cc cc cc", timm_model("gcresnext26ts"), 64),  # global context is not attention
    "regnetx_002": ("c c cccc ccccccc", timm_model("regnetx_002"), 64),
    "convnext_atto": ("cc cc cccccc cc", timm_model("convnext_atto", dims=FOUR), 32),
    "efficientnet_b0": ("c c cccc ccc", timm_model("efficientnet_b0"), 64),  # 1 2 2 3 3 4 1 blocks, a residual
    "mobilenetv2_050": ("c cc ccccc cc", timm_model("mobilenetv2_050"), 64),  # 1 2 3 4 3 3 1 for each but the first
    "nf_regnet_b0": ("c ccc cccccc cccccc", timm_model("nf_regnet_b0"), 64),  # scales its branches in place
    "cs3darknet_s": ("c ccc cccc c", timm_model("cs3darknet_s"), 64),  # half the channels bypass all blocks of a stage
    "fasternet_t0": ("c cc cccccccc cc", timm_model("fasternet_t0", embed_dim=8), 32),
    "mambaout_femto": ("ccc ccc ccccccccc ccc", timm_model("mambaout_femto", dims=FOUR), 32),
    # timm: attention
    "vit_tiny": (am(12), timm_model("vit_tiny_patch16_224", img_size=32), 32),
    "vit registers": (am(3), timm_model("vit_tiny_patch16_224", img_size=32, depth=3, reg_tokens=4), 32),
    "vit 2 in parallel": (am(3), timm_model("vit_small_patch16_18x2_224", img_size=32, depth=3), 32),
    "vit all in parallel": (  # attention and MLP of a block are added in one sum: one unit
        "ppp",
        timm_model("vit_tiny_patch16_224", img_size=32, depth=3, block_fn=ParallelScalingBlock),
        32,
    ),
    "deit distilled": (am(12), timm_model("deit_tiny_distilled_patch16_224", img_size=32), 32),
    "beit": (am(3), timm_model("beit_base_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2), 32),
    "swin_tiny": (
        f"{am(2)} {am(2)} {am(6)} {am(2)}",
        timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=24),
        64,
    ),
    "pit_ti": (f"{am(2)} {am(6)} {am(4)}", timm_model("pit_ti_224", img_size=64), 64),
    "mvitv2_tiny": (f"am {am(2)} {am(5)} {am(2)}", timm_model("mvitv2_tiny", img_size=64), 64),
    "hiera_tiny": (f"am {am(2)} {am(7)} {am(2)}", timm_model("hiera_tiny_224", img_size=64, embed_dim=24), 64),
    # XCiT: 12 blocks with local patch interaction, then 2 of class attention.  CaiT: 24 blocks, then 2 of class attention;
    # its class token enters only there, so the first class attention has no stream to which it is added
    "xcit_nano": ("acm" * 12 + am(2), timm_model("xcit_nano_12_p16_224"), 32),
    "cait_xxs24": (am(24) + "m" + am(1), timm_model("cait_xxs24_224", img_size=32, embed_dim=24, num_heads=2), 32),
    # timm: both, and neither
    "botnet26t": ("cc cc ca aa", timm_model("botnet26t_256", img_size=64), 64),
    "coatnet_nano": (
        f"ccc cccc {am(6)} {am(3)}",
        timm_model("coatnet_nano_rw_224", img_size=64, embed_dim=(32, 32, 32, 32)),
        64,
    ),
    "maxvit_nano": (
        "camam camamcamam camamcamamcamam camam",
        timm_model("maxvit_nano_rw_256", img_size=64, embed_dim=(32, 32, 32, 32)),
        64,
    ),
    "davit_tiny": (  # depths 1 1 3 1 of two halves: spatial attention, channel attention
        f"{'cacm' * 2} {'cacm' * 2} {'cacm' * 6} {'cacm' * 2}",
        timm_model("davit_tiny", embed_dims=FOUR, num_heads=(2, 2, 2, 2)),
        64,
    ),
    "levit_128s": (  # depths 2 3 4; attention that halves the map has no residual, the MLP after it has
        f"{am(2)} m{am(3)} m{am(4)}",
        timm_model("levit_128s", img_size=128),
        128,
    ),
    "mobilevit_xxs": (f"c cc {am(2)} {am(4)} {am(3)}", timm_model("mobilevit_xxs"), 64),
    "edgenext_xx_small": ("cc ca ccccca ca", timm_model("edgenext_xx_small"), 64),
    "twins_svt_small": (  # positions are encoded by a convolution after the first block of a stage
        f"amc{am(1)} amc{am(1)} amc{am(9)} amc{am(3)}",
        timm_model("twins_svt_small", img_size=64, embed_dims=FOUR, num_heads=(2, 2, 2, 2)),
        64,
    ),
    "pvt_v2_b0": ("acac acac acac acac", timm_model("pvt_v2_b0"), 64),  # its MLPs convolve
    "crossvit_tiny": (  # two streams: in each of 3 stages 1 and 4 blocks, then each attends to the other
        " ".join(["am", am(4) + "aa"] * 3),
        timm_model("crossvit_tiny_240", img_size=120),
        120,
    ),
    "poolformer_s12": (
        f"{'bm' * 2} {'bm' * 2} {'bm' * 6} {'bm' * 2}",
        timm_model("poolformer_s12"),
        32,
    ),
    "mixer": ("m" * 16, timm_model("mixer_s32_224", img_size=64), 64),
    "gmlp_ti16": ("m" * 30, timm_model("gmlp_ti16_224", img_size=32), 32),
    "sequencer2d_s": ("om" * 4 + " " + "om" * 14, timm_model("sequencer2d_s", embed_dims=FOUR), 64),
    # torchvision
    "tv resnet18": ("cc cc cc cc", tv.resnet18, 32),  # calls each rectifier twice
    "tv resnext": ("cc c cc c", lambda: tv.ResNet(tv.resnet.Bottleneck, [2, 1, 2, 1], groups=8, width_per_group=1), 32),
    "tv mobilenet_v2": ("c cc ccccc cc", lambda: tv.mobilenet_v2(width_mult=0.35), 64),
    "tv regnet_y_400mf": ("c ccc cccccc cccccc", tv.regnet_y_400mf, 64),
    "tv convnext": (
        "cc cc ccc c",
        lambda: tv.ConvNeXt(
            [
                tv.convnext.CNBlockConfig(8, 16, 2),
                tv.convnext.CNBlockConfig(16, 24, 2),
                tv.convnext.CNBlockConfig(24, 32, 3),
                tv.convnext.CNBlockConfig(32, None, 1),
            ]
        ),
        32,
    ),
    "tv vit": (am(3), lambda: VisionTransformer(32, 8, 3, 2, 16, 32), 32),
    "tv swin": (f"{am(2)} {am(4)}", lambda: tv.SwinTransformer([4, 4], 8, [2, 4], [2, 2], [2, 2]), 32),
    "tv swin_v2": (
        f"{am(2)} {am(4)}",
        lambda: tv.SwinTransformer(
            [4, 4], 8, [2, 4], [2, 2], [4, 4], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
        ),
        64,
    ),
    "tv maxvit": ("camam camamcamam", lambda: tv.MaxVit((64, 64), 16, 2, [16, 32], [1, 2], 8, 0.0), 64),
    "tv densenet": ("", lambda: tv.DenseNet(8, (2, 2), 8), 32),
    "tv squeezenet": ("", tv.squeezenet1_1, 64),
    # transformers
    "hf vit": (am(3), hf_model("ViT", **TINY), 32),
    "hf deit": (am(3), hf_model("DeiT", **TINY), 32),
    "hf beit": (am(3), hf_model("Beit", **TINY), 32),
    "hf dinov2 with registers": (am(3), hf_model("Dinov2WithRegisters", **TINY), 32),
    "hf clip": (am(3), hf_model("CLIP", vision_config=TINY), 32),
    "hf siglip": (am(3), hf_model("Siglip", vision_config=TINY), 32),
    "hf swin": (f"{am(2)} {am(4)}", hf_model("Swin", **SWIN), 32),
    "hf swinv2": (f"{am(2)} {am(4)}", hf_model("Swinv2", **SWIN), 32),
    "hf resnet": ("cc ccc", hf_model("ResNet", **STAGES, layer_type="basic"), 32),
    "hf regnet": ("cc ccc", hf_model("RegNet", **STAGES, groups_width=8), 32),
    "hf convnext": ("c cc ccc c", hf_model("ConvNext", hidden_sizes=list(FOUR), depths=[1, 2, 3, 1]), 64),
    "hf segformer": (
        "ac ac acac ac",  # its MLPs convolve
        hf_model("Segformer", depths=[1, 1, 2, 1], hidden_sizes=list(FOUR), num_attention_heads=[1, 2, 2, 2]),
        64,
    ),
    "hf poolformer": (
        "bm bm bmbm bm",
        hf_model("PoolFormer", depths=[1, 1, 2, 1], hidden_sizes=list(FOUR)),
        64,
    ),
    "hf cvt": (
        "am amam amamam",
        hf_model("Cvt", depth=[1, 2, 3], embed_dim=[8, 16, 24], num_heads=[1, 2, 2]),
        64,
    ),
    "hf mobilevit": (f"cc {am(2)} {am(4)} {am(3)}", hf_model("MobileViT"), 64),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_units_of_a_model_spell_its_word(name):
    word, make, side = MODELS[name]
    torch.manual_seed(0)
    model, images = make(), torch.randn(1, 3, side, side)
    modes = mixed_modes(model)
    before = fingerprint(model, images)

    model_units = units(model, images)
    assert spell(model_units) == word
    for unit, proof in check(model, images, model_units):
        assert proof is (True if unit.identity and unit.before and unit.after else None), unit

    assert fingerprint(model, images) == before
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def mixed_modes(model):
    """Put every third module into training mode; the modes, which must be the same afterwards."""
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    return [module.training for module in model.modules()]


def fingerprint(model, images):
    """A hash of the output, the parameters and the buffers."""
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        output = model.eval()(images)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    logits = output if isinstance(output, torch.Tensor) else output.logits
    digest = hashlib.sha256(logits.numpy().tobytes())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
