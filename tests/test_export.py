"""Our models go through torch.compile, torch.export and ONNX, and run with any size, type and memory format."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from backlight.models.architectures.alternet import AlterNet
from backlight.models.architectures.local_vit import LocalViT

TINY = {
    "padded": lambda: AlterNet("cc cab", dim=8, heads=2, dim_head=4, window=3, stem="cifar", num_classes=5),
    "basic": lambda: AlterNet("c a", block="basic", dim=8, heads=2, dim_head=4, bias_per_head=True, num_classes=5),
    "local": lambda: LocalViT(kernel=3, img_size=20, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=5),
}
OURS = [name for name in timm.list_models("*") if timm.models.model_entrypoint(name).__module__.startswith("backlight.")]


@pytest.fixture(params=TINY)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return TINY[request.param]().eval()


def images(size: int = 20, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def onnx_logits(model: nn.Module, x: Tensor, folder) -> Tensor:
    """The logits of the exported model in onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (x,), folder / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_same_logits(model, tmp_path):
    torch.testing.assert_close(onnx_logits(model, images(), tmp_path), model(images()), rtol=1e-4, atol=1e-5)


def test_exports_as_one_graph(model):
    program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images()), model(images()))


def test_compiles_as_one_graph_forward_and_backward(model):
    compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    logits, expected = compiled(images()), model(images())
    torch.testing.assert_close(logits, expected)
    grads = [torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (logits, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_channels_last_from_the_first_layer_to_the_last():
    model = TINY["padded"]().to(memory_format=torch.channels_last)
    channels_first: list[str] = []

    def check(name):
        def hook(module, inputs, out):
            for tensor in (inputs[0], out):
                if (
                    tensor.ndim == 4
                    and min(tensor.shape[1:]) > 1
                    and not tensor.is_contiguous(memory_format=torch.channels_last)
                ):
                    channels_first.append(name)

        return hook

    for name, module in model.named_modules():
        if name and not name.startswith("head"):
            module.register_forward_hook(check(name))
    model(images(18).contiguous(memory_format=torch.channels_last))  # windows of 3 divide 18 and 9: no padding
    assert not channels_first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OURS)
def test_every_registered_model_runs_trains_and_exports(name, tmp_path):
    model = timm.create_model(name)
    side = model.pretrained_cfg["input_size"][1]
    fixed = model.pretrained_cfg.get("fixed_input_size")
    model.eval()
    for size in (side,) if fixed else (32, 64, 96, 200, 224, 256):
        with torch.inference_mode():
            assert model(images(size, batch=1)).isfinite().all()
    torch.testing.assert_close(onnx_logits(model, images(side), tmp_path), model(images(side)), rtol=1e-4, atol=1e-4)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(images(32 if not fixed else side)).float(), torch.tensor([1, 2]))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
