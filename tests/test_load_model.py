"""Each kind of MODEL loads with its own preprocessing, and each mistake is reported in one sentence."""

import json
import math
import socket
import sys
import time
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.data import resolve_data_config
from torch import nn

from backlight.errors import Unavailable, UserError
from backlight.model_names import saved
from backlight.model_names.spec import SOURCES, parse
from backlight.models.architectures.alternet import AlterNet
from backlight.models.sources import hub
from backlight.models.sources.load import BUILDERS, list_names, load_model
from backlight.models.sources.saved import save_model
from backlight.models.sources.torchvision import preprocessing, torchvision_names
from backlight.offline import SWITCHES
from backlight.records import encoded

GETADDRINFO = socket.getaddrinfo
TINY = "word:cc ca?dim=8&dim_head=4&stem=cifar"

FACTORY = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=4, num_classes=3):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.AdaptiveAvgPool2d(1),
                                       torch.nn.Flatten(), torch.nn.Linear(width, num_classes))
    def forward(self, x):
        return self.net(x)

def plain():
    return Net()

def broken():
    raise ZeroDivisionError("division by zero")

def text():
    return "not a model"

ready = Net(width=6)
number = 3
"""


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and lose much time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_network_and_empty_caches(monkeypatch, tmp_path):
    """A machine that is not told to be offline, but cannot resolve any name, and whose caches are empty."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    for name in (*SWITCHES, "HF_HUB_ETAG_TIMEOUT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))


def fail_on_network(monkeypatch):
    """Any attempt to resolve a name or to connect fails the test."""

    def fail(*args, **kwargs):
        pytest.fail("touched the network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)


def logits(model, size=32):
    torch.manual_seed(1)
    with torch.inference_mode():
        return model(torch.randn(2, 3, size, size))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def sentence(refused):
    """The message, which must be one line."""
    message = str(refused.value)
    assert message
    assert "\n" not in message
    return message


# Names and arguments


def test_every_source_has_a_builder():
    assert set(BUILDERS) == set(SOURCES)


@pytest.mark.parametrize(
    ("spec", "source", "name", "arguments"),
    [
        ("resnet18", "", "resnet18", {}),
        ("resnet18?img_size=32&in_chans=1", "", "resnet18", {"img_size": 32, "in_chans": 1}),
        ("word:cc ca?heads=(1,2)&block=basic", "word", "cc ca", {"heads": (1, 2), "block": "basic"}),
        ("hf_hub:timm/x", "hf-hub", "timm/x", {}),
        ("a.b:make?deep=true&rate=1e-2&to=none", "", "a.b:make", {"deep": True, "rate": 0.01, "to": None}),
    ],
)
def test_parts_of_a_model_spec(spec, source, name, arguments):
    parts = parse(spec)
    assert (parts.source, parts.name, parts.arguments) == (source, name, arguments)


def test_a_timm_name_with_arguments():
    model = load_model("vit_tiny_patch16_224?img_size=32&patch_size=4&depth=1", pretrained=False, num_classes=7)
    assert not model.training
    assert logits(model).shape == (2, 7)
    assert resolve_data_config({}, model=model)["input_size"] == (3, 32, 32)
    grey = load_model("resnet18?in_chans=1&img_size=64", pretrained=False)  # takes any size: for preprocessing alone
    assert grey.pretrained_cfg["input_size"] == (1, 64, 64)
    for name, size in (("vit_tiny_patch16_224", 224), ("resnet18", 224)):
        assert timm.get_pretrained_cfg(name).input_size == (3, size, size)  # timm's own does not change


def test_random_weights_need_no_network(monkeypatch):
    fail_on_network(monkeypatch)
    for spec in ("resnet18", "alternet_18?dim=8", "torchvision:squeezenet1_1", TINY):
        load_model(spec, pretrained=False)


def test_our_names():
    model = load_model("alternet_50_cifar?dim=8", pretrained=False)
    assert isinstance(model, AlterNet)
    assert resolve_data_config({}, model=model)["mean"] == (0.5071, 0.4867, 0.4408)


def test_random_weights_are_the_same_every_time_and_the_callers_generator_is_not_used():
    before = torch.random.get_rng_state()
    one, two, other = (load_model(TINY, pretrained=False, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(one, two)
    assert not same(one, other)


def test_a_word():
    model = load_model(TINY + "&img_size=48&in_chans=1&num_classes=10", pretrained=False)
    assert model.word == "cc ca"
    assert model.num_classes == model.pretrained_cfg["num_classes"] == 10
    assert model.pretrained_cfg["input_size"] == (1, 48, 48)
    assert load_model("word:c?dim=8", pretrained=False).pretrained_cfg["input_size"] == (3, 224, 224)


def test_torchvision():
    model = load_model("torchvision:squeezenet1_1?img_size=64", pretrained=False, num_classes=4)
    assert logits(model, 64).shape == (2, 4)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert model.pretrained_cfg["num_classes"] == 4


def test_torchvision_weights_from_the_cache(monkeypatch, tmp_path):
    fail_on_network(monkeypatch)
    original = torchvision.models.squeezenet1_1().eval()
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(original.state_dict(), tmp_path / "torch" / "checkpoints" / weights.url.rsplit("/", 1)[1])
    assert same(load_model("torchvision:squeezenet1_1"), original)
    other = load_model("torchvision:squeezenet1_1?weights=IMAGENET1K_V1", num_classes=5)
    assert logits(other, 64).shape == (2, 5)
    assert torch.equal(other.features[0].weight, original.features[0].weight)


def test_torchvision_preprocessing_resizes_as_torchvision_does():
    for name in torchvision_names():
        weights = torchvision.models.get_model_weights(name).DEFAULT
        cfg, transforms = preprocessing(weights, None), weights.transforms()
        crop = cfg["input_size"][-1]
        resize = math.floor(crop / cfg["crop_pct"])  # as timm computes it
        assert (name, [crop], [resize]) == (name, transforms.crop_size, transforms.resize_size)
        assert (list(cfg["mean"]), list(cfg["std"])) == (transforms.mean, transforms.std)


# Hugging Face


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=5, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(folder)
    return folder


def test_hugging_face(vit_folder):
    from transformers import ViTForImageClassification

    model = load_model(f"hf:{vit_folder}")
    assert same(model, ViTForImageClassification.from_pretrained(vit_folder))
    assert logits(model).logits.shape == (2, 5)
    config = resolve_data_config({}, model=model)
    assert (config["input_size"], config["crop_pct"], config["crop_mode"]) == ((3, 32, 32), 1.0, "squash")
    assert (config["mean"], config["interpolation"]) == ((0.5, 0.5, 0.5), "bicubic")
    assert logits(load_model(f"hf:{vit_folder}", num_classes=3)).logits.shape == (2, 3)
    random = load_model(f"hf:{vit_folder}?img_size=64", pretrained=False)
    assert random.pretrained_cfg["input_size"] == (3, 64, 64)
    assert logits(random, 64).logits.shape == (2, 5)


def test_broken_hugging_face_folders_are_refused_by_name(vit_folder, tmp_path):
    with pytest.raises(UserError) as refused:
        load_model(f"hf:{tmp_path}")
    assert f"hf:{tmp_path} is no image model that transformers can build" in sentence(refused)
    (tmp_path / "config.json").write_bytes((vit_folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(Unavailable) as refused:
        load_model(f"hf:{tmp_path}")
    assert f"no weights for hf:{tmp_path}" in sentence(refused)
    with pytest.raises(UserError) as refused:
        load_model(f"hf:{vit_folder}?foo=1")
    assert "takes no argument foo" in sentence(refused)


def test_hugging_face_without_an_image_processor_warns(vit_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((vit_folder / name).read_bytes())
    with pytest.warns(UserWarning, match="no image processor"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": 224}, ((224, 224), 1.0, "squash")),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, ((224, 224), 0.875, "center")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, ((224, 224), 0.875, "center")),  # ConvNeXt, small
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, ((384, 384), 1.0, "squash")),  # ConvNeXt, large
        (
            {"size": {"height": 346, "width": 346}, "do_center_crop": False, "crop_size": 289},
            ((346, 346), 1.0, "squash"),
        ),
        (
            {
                "size": {"shortest_edge": 224},
                "do_center_crop": True,
                "crop_size": 224,
                "image_processor_type": "LevitX",
            },
            ((224, 224), 0.875, "center"),
        ),
    ],
)
def test_geometry_of_image_processors(processor, expected):
    from backlight.models.sources.hugging_face import geometry

    assert geometry(processor) == expected


# timm's folders, the authors' checkpoints


def test_timm_local_dir(tmp_path):
    model = timm.create_model("alternet_18", dim=8, num_classes=3).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert same(load_model(f"local-dir:{tmp_path}"), model)
    assert not same(load_model(f"local-dir:{tmp_path}", pretrained=False), model)


def test_broken_timm_folders_are_refused_by_name(tmp_path):
    with pytest.raises(Unavailable) as refused:
        load_model(f"local-dir:{tmp_path}")
    assert "Config file not found" in sentence(refused)
    timm.models.save_for_hf(timm.create_model("alternet_18", dim=8), tmp_path, safe_serialization=True)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(Unavailable) as refused:
        load_model(f"local-dir:{tmp_path}")
    assert f"no weights for local-dir:{tmp_path}" in sentence(refused)


def official_state(model):
    """A basic-block AlterNet under the authors' names, derived in the other direction: from our names to theirs."""
    theirs = {"stem.conv": "layer0.layer0.0", "norm.bn": "classifier.0.bn", "head.fc": "classifier.0.dense"}
    inside = {"shortcut": "shortcut.0", "norm": "bn", "branch.conv1": "conv1", "branch.norm2": "conv2.0"}
    inside |= {"branch.conv2": "conv2.2"}
    attention = {"shortcut": "shortcut.0", "norm": "norm1", "branch.conv": "conv", "branch.norm2": "norm2"}
    attention |= {"branch.attn.out": "attn.attn.to_out.0"}
    state = {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if not name.startswith("stages"):
            state[f"{theirs[module]}.{leaf}"] = tensor
            continue
        _, s, i, rest = module.split(".", 3)
        block = f"layer{int(s) + 1}.{i}"
        attends = hasattr(model.stages[int(s)][int(i)].branch, "attn")
        if leaf == "bias_table":
            state[f"{block}.attn.pos_embedding"] = tensor[0]
        elif rest == "branch.attn.qkv":
            query, keys_and_values = tensor[..., None, None].tensor_split([len(tensor) // 3])
            state |= {f"{block}.attn.attn.to_q.weight": query, f"{block}.attn.attn.to_kv.weight": keys_and_values}
        else:
            kernel = tensor[..., None, None] if rest == "branch.attn.out" and leaf == "weight" else tensor
            state[f"{block}.{(attention if attends else inside)[rest]}.{leaf}"] = kernel
    return state


@pytest.fixture
def official(tmp_path):
    model = AlterNet("cc ca", block="basic", stem="cifar", dim=8, heads=(3, 1), window=3, num_classes=4).eval()
    path = tmp_path / "alternet.pth.tar"
    return model, official_state(model), path


def test_official_checkpoint(official):
    model, state, path = official
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
    loaded = load_model(f"official:{path}")
    assert loaded.word == "cc ca"
    assert same(loaded, model)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.pretrained_cfg["input_size"] == (3, 32, 32)
    assert logits(load_model(f"official:{path}", num_classes=2)).shape == (2, 2)
    assert not same(load_model(f"official:{path}", pretrained=False), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.0.dense.weight"), "classifier.0.dense.weight"),
        (lambda state: state.pop("layer2.1.attn.attn.to_kv.weight"), "layer2.1.attn.attn.to_q.weight differ"),
        (lambda state: state.update({"layer1.0.extra.weight": torch.ones(2)}), "layer1.0.extra.weight differ"),
        (lambda state: state.pop("layer1.1.bn.bias"), "stages.0.1.norm.bias differ"),
        (lambda state: state.clear(), "its tensors begin with"),
    ],
)
def test_official_checkpoints_that_do_not_fit(official, change, message):
    _, state, path = official
    change(state)
    torch.save({"state_dict": state}, path)
    with pytest.raises(UserError) as refused:
        load_model(f"official:{path}")
    assert message in sentence(refused)
    assert str(path) in sentence(refused)


class Malicious:
    def __reduce__(self):
        return sys.exit, ("a checkpoint ran code",)


def test_official_checkpoints_run_no_code(official):
    _, state, path = official
    torch.save({"state_dict": state, "epoch": Malicious()}, path)
    with pytest.raises(UserError) as refused:
        load_model(f"official:{path}")
    assert f"{path} is not loaded, because it is not a checkpoint that holds only tensors" in sentence(refused)


# Folders


@pytest.fixture
def folder(tmp_path):
    model = load_model(TINY, pretrained=False, num_classes=3, seed=5)
    preprocessing = {"input_size": (3, 28, 28), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 1.0}
    return model, save_model(
        model,
        tmp_path / "run",
        spec=TINY,
        num_classes=3,
        preprocessing=preprocessing,
        classes=["a", "b", "c"],
        recipe="short",
    )


def test_a_folder_is_loaded_bit_for_bit(folder):
    model, path = folder
    loaded = load_model(str(path))
    assert same(loaded, model)
    assert not loaded.training
    config = resolve_data_config({}, model=loaded)
    assert (config["input_size"], config["mean"]) == ((3, 28, 28), (0.1, 0.2, 0.3))
    description = json.loads((path / "model.json").read_text())
    assert (description["classes"], description["facts"]["recipe"]) == (["a", "b", "c"], "short")
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.json", "model.safetensors"]
    assert not same(load_model(str(path), pretrained=False), model)


def test_a_folder_with_another_number_of_classes_keeps_all_but_the_head(folder):
    model, path = folder
    other = load_model(str(path), num_classes=7)
    assert other.num_classes == 7
    differ = [n for n, t in other.state_dict().items() if t.shape != model.state_dict()[n].shape]
    assert differ == ["head.fc.weight", "head.fc.bias"]
    assert torch.equal(other.stem.conv.weight, model.stem.conv.weight)


def test_a_model_trained_from_a_folder_does_not_depend_on_it(folder, tmp_path):
    model, path = folder
    second = save_model(model, tmp_path / "second", spec=str(path), num_classes=3)
    assert json.loads((second / "model.json").read_text())["model"] == TINY


def test_bundled_models_have_short_names(folder, monkeypatch):
    model, path = folder
    monkeypatch.setattr(saved, "BUNDLED", path.parent)
    assert list_names()["demo"] == ["run"]
    assert same(load_model("run"), model)


def test_tied_weights_are_saved_once_and_tied_again(tmp_path, monkeypatch):
    (tmp_path / "tied.py").write_text(
        "import torch\ndef net():\n    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))\n"
        "    net[1].weight = net[0].weight\n    return net\n"
    )
    spec = f"{tmp_path / 'tied.py'}:net"
    model = load_model(spec)
    path = save_model(model, tmp_path / "out", spec=spec, num_classes=None)
    loaded = load_model(str(path))
    assert same(loaded, model)
    assert loaded[0].weight is loaded[1].weight


def flip_a_bit(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("change", [flip_a_bit, lambda data: data[:-10], lambda data: b""])
def test_altered_weights_are_refused_by_name(folder, change):
    weights = folder[1] / "model.safetensors"
    weights.write_bytes(change(weights.read_bytes()))
    with pytest.raises(Unavailable) as refused:
        load_model(str(folder[1]))
    assert f"{weights} is damaged: its sha256 is not that of what was written" in sentence(refused)


def test_missing_weights_and_broken_descriptions_are_refused_by_name(folder):
    _, path = folder
    (path / "model.safetensors").unlink()
    with pytest.raises(Unavailable) as refused:
        load_model(str(path))
    assert f"{path / 'model.safetensors'} is missing" in sentence(refused)
    for text in ("{", "[]", '{"model": "x"}'):
        (path / "model.json").write_text(text)
        with pytest.raises(UserError) as refused:
            load_model(str(path))
        assert f"{path / 'model.json'} {'was not written' if 'x' in text else 'is damaged'}" in sentence(refused)


def test_weights_of_another_model_are_refused(folder):
    _, path = folder
    other = replace(saved.describe(path), model=TINY.replace("cc ca", "cc cc"))
    (path / "model.json").write_bytes(encoded(other))
    with pytest.raises(Unavailable) as refused:
        load_model(str(path))
    assert "does not fit the model" in sentence(refused)


def test_a_folder_that_cannot_be_written_is_a_users_mistake(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as refused:
        save_model(folder[0], tmp_path / "file" / "run", spec=TINY, num_classes=3)
    assert "cannot be written" in sentence(refused)


def test_a_failed_write_leaves_the_former_files(folder, monkeypatch):
    model, path = folder

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError):
        save_model(model, path, spec=TINY, num_classes=3)
    monkeypatch.undo()
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.json", "model.safetensors"]
    assert same(load_model(str(path)), model)


# A user's own models


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_models.py"
    sys.modules.pop("my_models", None)


@pytest.mark.parametrize("location", ["my_models", "my_models.py", "{script}"])
def test_a_factory(script, location):
    path = list(sys.path)
    location = location.format(script=script)
    model = load_model(f"{location}:Net?width=8", num_classes=5)
    assert logits(model).shape == (2, 5)
    assert model.net[0].out_channels == 8
    assert logits(load_model(f"{location}:plain")).shape == (2, 3)
    assert load_model(f"{location}:ready").net[0].out_channels == 6
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_models:plane", "my_models has no 'plane'; did you mean plain"),
        ("my_models:broken", "my_models:broken failed: ZeroDivisionError: division by zero"),
        ("my_models:text", "returned str, not a torch.nn.Module"),
        ("my_models:number", "my_models:number has the type int; name a model, or a function that returns one"),
        ("my_models:Net?with=3", "takes no argument with"),
        ("my_models:Net?width=-1", "cannot be built with width=-1"),
        ("my_modelz:Net", "there is no module my_modelz"),
        ("missing.py:Net", "there is no file missing.py"),
        ("bad.py:Net", "bad.py cannot be imported: SyntaxError"),
        ("needy.py:Net", "needy.py cannot be imported: No module named 'not_installed'"),
    ],
)
def test_factories_that_fail(script, spec, message):
    (script.parent / "bad.py").write_text("def :")
    (script.parent / "needy.py").write_text("import not_installed")
    with pytest.raises(UserError) as refused:
        load_model(spec)
    assert message in sentence(refused)


def test_a_factory_without_num_classes_does_not_ignore_another_number(script):
    with pytest.raises(UserError) as refused:
        load_model("my_models:plain", num_classes=5)
    assert "takes no num_classes=5" in sentence(refused)


def test_the_arguments_of_a_factory_can_describe_its_preprocessing(script):
    from backlight.data.preprocessing import preprocessing

    values = preprocessing(load_model("my_models:Net?width=8&input_size=(3, 20, 24)&mean=(0.1, 0.2, 0.3)"))
    assert values["input_size"] == [3, 20, 24]
    assert values["mean"] == [0.1, 0.2, 0.3]
    assert values["std"] == [1.0, 1.0, 1.0]
    with pytest.raises(UserError) as refused:
        load_model("my_models:Net?mean=(0.1, 0.2, 0.3)")
    assert "input_size=(3, 224, 224)" in sentence(refused)


def test_a_preprocessing_gives_the_same_images_in_the_name_and_in_the_factory(script, tmp_path):
    """An image that has the model's size is not cropped; the pixels are those of Pillow."""
    from PIL import Image

    from backlight.data.loading import load_data

    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "images" / f"c{i}").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "images" / f"c{i}" / "0.png")
    (script.parent / "described.py").write_text(
        "import torch\n\n\ndef make(width=3):\n    model = torch.nn.Conv2d(width, 10, 32)\n"
        "    model.pretrained_cfg = {'input_size': (3, 32, 32), 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.6, 0.7)}\n"
        "    return model\n\n\ndef bare():\n    return torch.nn.Conv2d(3, 10, 32)\n"
    )
    in_name = "described.py:bare?input_size=(3, 32, 32)&mean=(0.1, 0.2, 0.3)&std=(0.5, 0.6, 0.7)"
    records = []
    for spec in ("described.py:make", in_name):
        with pytest.warns(UserWarning, match="assumed: interpolation bicubic, crop_pct 1.0, crop_mode center"):
            data = load_data(str(tmp_path / "images"), model=load_model(spec))
        expected = (pixels / 255 - (0.1, 0.2, 0.3)) / (0.5, 0.6, 0.7)
        np.testing.assert_allclose(next(iter(data))[0].permute(0, 2, 3, 1), expected, atol=1e-5)
        records.append(data.provenance["preprocessing"])
    assert records[0] == records[1]
    assert records[0]["assumed"] == ["interpolation", "crop_pct", "crop_mode"]


def test_only_what_is_missing_is_assumed():
    from backlight.data.preprocessing import preprocessing

    model = nn.Conv2d(3, 10, 32)
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    record = preprocessing(model)
    assert record["assumed"] == ["mean", "std", "interpolation", "crop_pct", "crop_mode"]
    assert (record["mean"], record["std"], record["crop_pct"]) == ([0.0] * 3, [1.0] * 3, 1.0)
    assert preprocessing(load_model("resnet18", pretrained=False))["assumed"] == []
    model.pretrained_cfg = {"mean": (0.5,) * 3}
    with pytest.raises(UserError) as refused:
        preprocessing(model)
    assert "input_size=(3, 224, 224)" in sentence(refused)


# Wrong names, and weights that are not available


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("resnet51", UserError, "did you mean resnet5"),
        ("alternet50", UserError, "alternet_50"),
        ("zzz", UserError, "`backlight models` lists the names"),
        ("", UserError, "names no model"),
        ("word:", UserError, "names no model"),
        ("resnet18.imagenet", UserError, "no weights 'imagenet'"),
        ("resnet18?foo=1", UserError, "resnet18 takes no argument foo"),
        ("resnet18?foo", UserError, "name=value, not 'foo'"),
        ("resnet18?num_classes=3&num_classes=4", UserError, "given twice"),
        ("resnet18?pretrained=true", UserError, "--no-pretrained"),
        ("vit_tiny_patch16_224?depth=deep", UserError, "cannot be built with depth='deep'"),
        ("word:cc ca?heds=3", UserError, "takes no argument heds; did you mean heads"),
        ("word:cx", UserError, "'cx' has ['x']"),
        ("torchvision:resnet19", UserError, "did you mean resnet"),
        ("torchvision:resnet18?weights=BEST", UserError, "no weights 'BEST', only IMAGENET1K_V1"),
        ("torchvision:resnet18?foo=1", UserError, "takes no argument foo"),
        ("torchvison:resnet18", UserError, "did you mean torchvision"),
        ("./nowhere", Unavailable, "there is no folder ./nowhere"),
        ("hf:./nowhere", Unavailable, "there is no folder ./nowhere"),
        ("local-dir:nowhere", Unavailable, "there is no folder nowhere"),
        ("official:nowhere.pth.tar", Unavailable, "nowhere.pth.tar cannot be read"),
        (".", UserError, "a folder without model.json"),
        ("hf:org/name", Unavailable, "no configuration for hf:org/name here: cannot reach huggingface.co"),
        ("hf:org/na me", UserError, "'org/na me' is not the name of a repository"),
    ],
)
def test_refusals_without_weights(spec, error, message):
    with pytest.raises(error) as refused:
        load_model(spec, pretrained=False)
    assert message in sentence(refused)
    assert refused.value.exit_code == (4 if error is Unavailable else refused.value.exit_code)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("resnet50", "cannot reach huggingface.co"),
        ("vit_huge_patch14_gap_224.in1k_ijepa", "cannot reach dl.fbaipublicfiles.com"),
        ("torchvision:resnet18", "cannot reach download.pytorch.org"),
        ("hf-hub:timm/resnet18.a1_in1k", "cannot reach huggingface.co"),
        ("alternet_50", "there are no pretrained weights"),
        (TINY, "is an architecture without weights"),
    ],
)
def test_without_network_the_answer_is_one_sentence_within_seconds_that_says_what_to_do(spec, reason):
    began = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        load_model(spec)
    assert time.monotonic() - began < 5
    assert reason in sentence(refused)
    assert "--no-pretrained" in sentence(refused)
    assert refused.value.exit_code == 4


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("spec", ["resnet18", "torchvision:resnet18", "vit_huge_patch14_gap_224.in1k_ijepa", "hf:org/name"])
def test_an_offline_switch_forbids_any_use_of_the_network(monkeypatch, switch, spec):
    fail_on_network(monkeypatch)
    monkeypatch.setenv(switch, "1")
    with pytest.raises(Unavailable) as refused:
        load_model(spec)
    assert f"{switch} is set" in sentence(refused)


def cached_on_the_hub(tmp_path, repository, files):
    """Put files into the Hub's cache as huggingface_hub does after a download."""
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for file in files:
        (snapshot / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("switch", ["", "BACKLIGHT_OFFLINE"])
def test_cached_weights_load_without_network(monkeypatch, tmp_path, vit_folder, switch):
    if switch:
        fail_on_network(monkeypatch)
        monkeypatch.setenv(switch, "1")
    timm.models.save_for_hf(timm.create_model("resnet18"), tmp_path / "saved", safe_serialization=True)
    cached_on_the_hub(tmp_path, "timm/resnet18.a1_in1k", [tmp_path / "saved" / "model.safetensors"])
    cached_on_the_hub(tmp_path, "org/vit", vit_folder.iterdir())
    began = time.monotonic()
    loaded = load_model("resnet18")
    assert same(loaded, timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True))
    assert same(load_model("hf:org/vit"), load_model(f"hf:{vit_folder}"))
    assert time.monotonic() - began < 5
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "the setting of the library is restored"


def test_weights_that_are_missing_from_a_cached_repository_are_refused_within_seconds(tmp_path, vit_folder):
    cached_on_the_hub(tmp_path, "org/vit", [vit_folder / "config.json"])
    cached_on_the_hub(tmp_path, "timm/resnet18.a1_in1k", [vit_folder / "config.json"])
    began = time.monotonic()
    for spec in ("hf:org/vit", "resnet18"):
        with pytest.raises(Unavailable) as refused:
            load_model(spec)
        assert f"no weights for {spec} here: cannot reach huggingface.co" in sentence(refused)
    assert time.monotonic() - began < 5


def test_the_hub_is_used_if_it_answers(monkeypatch):
    """Also with an error: only the download knows whether a repository has the files that it needs."""
    from huggingface_hub.errors import HfHubHTTPError

    errors = iter([None, HfHubHTTPError.__new__(HfHubHTTPError)])

    def answer(url, *, timeout):
        assert url == "https://huggingface.co/org/name/resolve/main/config.json"
        assert timeout == 2
        if error := next(errors):
            raise error

    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "2")
    monkeypatch.setattr(hub, "get_hf_file_metadata", answer)
    for _ in range(2):
        with hub.hub_or_cache("org/name@main") as reason:
            assert reason == ""
            assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not list(errors)


def test_weights_from_a_plain_address_are_downloaded_once(monkeypatch, tmp_path):
    (tmp_path / "served").write_bytes(b"weights")
    url = (tmp_path / "served").as_uri()
    fail_on_network(monkeypatch)
    for content in (b"weights", b"changed"):
        with hub.from_address("x", url):
            assert (tmp_path / "torch" / "checkpoints" / "served").read_bytes() == b"weights"
        (tmp_path / "served").write_bytes(content)
    (tmp_path / "net-0123.pth").write_bytes(b"altered")
    with (
        pytest.raises(Unavailable, match="no weights for x here: invalid hash value"),
        hub.from_address("x", (tmp_path / "net-0123.pth").as_uri(), check_hash=True),
    ):
        pytest.fail("an altered file was accepted")


def test_a_host_that_accepts_and_stays_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", GETADDRINFO)
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net.pth"
        monkeypatch.setattr(hub, "hf_hub_url", lambda *_: url)
        for source in (hub.from_address("x", url), hub.from_hub("x", "org/name")):
            with pytest.raises(Unavailable, match=r"no weights for x here: cannot reach 127\.0\.0\.1 \(timed out\)"), source:
                pytest.fail("a silent host gave a file")
    assert socket.getdefaulttimeout() is None


def test_names():
    names = list_names("alternet_50")
    assert names["ours"] == ["alternet_50", "alternet_50_cifar"]
    assert names["timm"] == names["torchvision"] == []
    assert list_names("torchvision:resnet1*")["torchvision"] == [
        "torchvision:resnet101",
        "torchvision:resnet152",
        "torchvision:resnet18",
    ]
    everything = list_names()
    assert "resnet50" in everything["timm"]
    assert not set(everything["ours"]) & set(everything["timm"])


def test_two_values_of_num_classes_must_agree():

    assert load_model(TINY + "&num_classes=4", pretrained=False, num_classes=4).num_classes == 4
    with pytest.raises(UserError) as refused:
        load_model(TINY + "&num_classes=4", pretrained=False, num_classes=5)
    assert "disagree" in sentence(refused)
