"""The Hessian as an operator: against dense Hessians built row by row, closed forms and another library."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from known_models import noise, unchanged
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backlight.curvature.hessian import Hessian, of_module, of_units
from backlight.curvature.loss import Objective
from backlight.errors import UserError
from backlight.models.architectures.alternet import AlterNet
from backlight.models.weight_decay import decays
from backlight.numerics.lanczos import ORDER, lanczos
from backlight.numerics.quadrature import density, trace
from backlight.tracing.find import units

CLASSES, DECAY = 3, 0.05


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, CLASSES),
    )  # fmt: skip


class ViT(nn.Module):
    """Two by two patches, one block of layer norm, fused attention and an MLP."""

    def __init__(self, dim=4):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.norm1, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(self.norm2(x))).mean(1))


def alternet():
    return AlterNet("ca", dim=2, heads=1, dim_head=2, window=2, stem="cifar", num_classes=CLASSES)


def made(make, dtype=torch.float64):
    """A model whose running statistics are not those of a new one."""
    torch.manual_seed(0)
    model = make().to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def data(n=6, side=8, dtype=torch.float64, classes=CLASSES):
    return noise(n, 3, side, side).to(dtype), noise(n, classes, seed=1).to(dtype).softmax(1)


def dense(model, images, targets):
    """The Hessian of the mean cross-entropy, each row the gradient of an entry of the gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        loss = nn.functional.cross_entropy(model(images), targets)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def matrix(operator):
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


# --- products are exact


@pytest.mark.parametrize("make", [cnn, ViT, alternet])
def test_is_the_dense_hessian_plus_weight_decay(make):
    model = made(make).train()
    images, targets = data()
    with unchanged(model):
        operator = Hessian(model, Objective(weight_decay=DECAY), [(images, targets)])
        product = matrix(operator)
    exact = dense(copy.deepcopy(model).eval(), images, targets)
    eye = torch.eye(operator.size, dtype=torch.float64)
    assert operator.size == sum(p.numel() for p in model.parameters())
    assert (product - exact - DECAY * eye).abs().max() < 1e-12
    eigenvalues = np.linalg.eigvalsh(exact.numpy()) + DECAY
    for which in ("magnitude", "both"):
        pairs = lanczos(operator, 5, which=which, tol=1e-10, limit=2 * operator.size)
        expected = eigenvalues[ORDER[which](eigenvalues)[:5]]
        assert np.sort(abs(pairs.values)) == pytest.approx(np.sort(abs(expected)), abs=1e-8)


def test_batch_statistics_are_those_of_the_batch():
    model = made(cnn)
    images, targets = data()
    hessian = matrix(Hessian(model, Objective(statistics="batch"), [(images, targets)]))
    training = copy.deepcopy(model).train()
    training[8].eval()  # dropout
    assert torch.allclose(hessian, dense(training, images, targets), atol=1e-12)
    assert not torch.allclose(hessian, dense(copy.deepcopy(model).eval(), images, targets), atol=1e-3)


@pytest.mark.parametrize("keep_graph", [True, False, "auto"])
@pytest.mark.parametrize("sizes", [(6,), (5, 1), (3, 2, 1)])
def test_batches_of_any_size_are_one_data_set(sizes, keep_graph):
    model = made(alternet)
    images, targets = data()
    parts = list(zip(images.split(sizes), targets.split(sizes), strict=True))
    v = noise(sum(p.numel() for p in model.parameters())).double()
    one_batch = Hessian(model, Objective(), [(images, targets)], check=False)
    several = Hessian(model, Objective(), parts, keep_graph=keep_graph, check=False)
    for _ in range(2):
        assert torch.allclose(several @ v, one_batch @ v, atol=1e-13)
    assert torch.allclose(several.gradient, one_batch.gradient, atol=1e-14)
    assert several.loss() == pytest.approx(one_batch.loss())
    micro = Hessian(model, Objective(), [(images, targets)], micro_batch=4, check=False)
    assert len(micro.batches) == 2
    assert torch.allclose(micro @ v, one_batch @ v, atol=1e-13)


def test_graphs_are_stored_while_memory_allows():
    model, (images, targets) = made(cnn), data()
    parts = list(zip(images.split(2), targets.split(2), strict=True))

    def stored(**settings):
        operator = Hessian(model, Objective(), parts, **settings)
        return len(operator._graphs)

    assert [stored(), stored(memory=0), stored(keep_graph=False), stored(memory=0, keep_graph=True)] == [3, 0, 0, 3]


def test_linear_regression_has_the_hessian_of_its_inputs():
    x, y = noise(20, 4).double(), noise(20, 1, seed=2).double()
    model = nn.Linear(4, 1).double()
    objective = Objective(lambda out, target: (out - target).square().sum(1) / 2)
    design = torch.cat([x, torch.ones(20, 1)], 1)
    hessian = Hessian(model, objective, [(x[:13], y[:13]), (x[13:], y[13:])])
    assert torch.allclose(matrix(hessian), design.T @ design / 20, atol=1e-14)


def test_softmax_regression_has_its_closed_form():
    x, y = noise(9, 5).double(), torch.arange(9) % 3
    model = nn.Linear(5, 3, bias=False).double()
    p = model(x).softmax(1).detach()
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    exact = torch.einsum("nab,ni,nj->aibj", blocks, x, x).reshape(15, 15) / 9
    assert torch.allclose(matrix(Hessian(model, Objective(), [(x, y)])), exact, atol=1e-14)


def test_weight_decay_shifts_every_eigenvalue_and_only_where_it_decays():
    model, batch = made(cnn), data()
    plain, decayed, some = (
        matrix(Hessian(model, objective, [batch]))
        for objective in (Objective(), Objective(weight_decay=DECAY), Objective(weight_decay=DECAY, decayed=decays(model)))
    )
    assert torch.linalg.eigvalsh(decayed) - torch.linalg.eigvalsh(plain) == pytest.approx(DECAY * np.ones(len(plain)))
    mask = torch.cat([torch.full((p.numel(),), float(p.ndim > 1)) for p in model.parameters()])
    assert torch.allclose(some - plain, DECAY * torch.diag(mask).double(), atol=1e-15)


def test_agrees_with_curvlinops_on_a_net_with_batch_norm():
    curvlinops = pytest.importorskip("curvlinops")
    model, (images, _) = made(cnn).eval(), data()
    labels = torch.arange(6) % CLASSES
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    theirs = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), batches, check_deterministic=False
    )
    v = noise(theirs.shape[0]).double()
    assert torch.allclose(Hessian(model, Objective(), batches) @ v, theirs @ v, atol=1e-12)


def test_products_are_a_difference_of_gradients():
    """For a network without rectifiers; no second derivative is computed."""
    model, batch = made(ViT), data()
    operator = Hessian(model, Objective(weight_decay=DECAY), [batch])
    v = noise(operator.size).double()
    gradients = []
    for step in (1e-6, -1e-6):  # the error is proportional to the square of the step, 4e-9 here
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), operator.named(v).values(), strict=True):
                p += step * d
        gradients.append(Hessian(moved, Objective(weight_decay=DECAY), [batch], check=False).gradient)
    assert torch.allclose((gradients[0] - gradients[1]) / 2e-6, operator @ v, atol=1e-7)


# --- blocks, frozen, unused and tied parameters


def test_a_block_of_parameters_is_a_block_of_the_hessian():
    model, batch = made(ViT), data()
    full = Hessian(model, Objective(weight_decay=DECAY), [batch])
    inside = torch.cat([torch.full((p.numel(),), name.startswith("mlp")) for name, p in model.named_parameters()])
    with unchanged(model):
        block = Hessian(model, Objective(weight_decay=DECAY), [batch], params=of_module("mlp"))
        product = matrix(block)
    assert torch.allclose(product, matrix(full)[inside][:, inside], atol=1e-14)
    assert list(block.parameters) == ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]


def test_the_block_of_all_attentions():
    model, batch = made(alternet), data()
    attentions = [unit for unit in units(model, batch[0]) if unit.kind == "attention"]
    block = Hessian(model, Objective(), [batch], params=of_units(attentions))
    assert 0 < block.size < sum(p.numel() for p in model.parameters())
    assert all(name.startswith(attentions[0].module) for name in block.parameters)


def test_frozen_unused_and_tied_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.unused = nn.Linear(5, 5, bias=False), nn.Linear(2, 2)
            self.second, self.frozen = nn.Linear(5, 5, bias=False), nn.Linear(5, CLASSES)
            self.second.weight = self.first.weight
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(torch.tanh(self.second(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    model, x, y = Odd().double(), noise(7, 5).double(), torch.arange(7) % CLASSES
    with unchanged(model):
        operator = Hessian(model, Objective(), [(x, y)])
        product = matrix(operator)
    assert list(operator.parameters) == ["first.weight", "unused.weight", "unused.bias"]
    assert torch.allclose(product, dense(model, x, y), atol=1e-14)
    assert (product[25:] == 0).all()
    by_other_name = Hessian(model, Objective(), [(x, y)], params=of_module("second"))
    assert list(by_other_name.parameters) == ["second.weight"]
    assert torch.allclose(matrix(by_other_name), product[:25, :25], atol=1e-14)
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_linear_has_no_curvature():
    model, x = nn.Linear(4, 2).double(), noise(5, 4).double()
    operator = Hessian(model, Objective(lambda out, _: out.sum(1), weight_decay=DECAY), [(x, torch.zeros(5).long())])
    assert torch.equal(matrix(operator), DECAY * torch.eye(10, dtype=torch.float64))


# --- the gradient and sharpness


def test_gradient_loss_and_sharpness():
    model, (images, targets) = made(ViT), data()
    operator = Hessian(model, Objective(weight_decay=DECAY), [(images[:4], targets[:4]), (images[4:], targets[4:])])
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def objective(weights):
        other = copy.deepcopy(model)
        nn.utils.vector_to_parameters(weights, other.parameters())
        return nn.functional.cross_entropy(other(images), targets).item() + DECAY / 2 * float(weights @ weights)

    assert operator.loss() == pytest.approx(
        {"loss": nn.functional.cross_entropy(model(images), targets).item(), "weight_decay": DECAY / 2 * float(theta @ theta)}
    )
    g = operator.gradient
    v = noise(operator.size).double()
    assert float(g @ v) == pytest.approx((objective(theta + 1e-6 * v) - objective(theta - 1e-6 * v)) / 2e-6, rel=1e-6)
    along = [objective(theta + step * g / g.norm()) for step in (-1e-3, 0, 1e-3)]
    assert operator.sharpness() == pytest.approx((along[0] - 2 * along[1] + along[2]) / 1e-6, rel=1e-4)
    assert operator.sam_sharpness(0.1) == pytest.approx(objective(theta + 0.1 * g / g.norm()) - objective(theta))


def test_trace_and_density_of_a_model():
    operator = Hessian(made(alternet), Objective(), [data()])
    eigenvalues = torch.linalg.eigvalsh(matrix(operator)).numpy()
    _, low, high = trace(operator, probes=20)
    assert low <= eigenvalues.sum() <= high
    spectrum = density(operator, probes=3, steps=10)
    assert spectrum.nodes.max() <= eigenvalues.max() + 1e-9
    assert spectrum.nodes.min() >= eigenvalues.min() - 1e-9


# --- precision


def test_float64_is_a_copy_and_float32_is_close_to_it():
    model, batch = made(ViT, torch.float32), data(dtype=torch.float32)
    with unchanged(model):
        exact = Hessian(model, Objective(), [batch], dtype=torch.float64)
        rounded = Hessian(model, Objective(), [batch])
    assert (exact.dtype, rounded.dtype) == (torch.float64, torch.float32)
    v = noise(exact.size)
    assert (rounded @ v).double() == pytest.approx(exact @ v, abs=1e-5)
    assert lanczos(rounded).values == pytest.approx(lanczos(exact).values, rel=1e-3)
    assert max(exact.probes.values()) < 1e-10


def test_gradients_disabled_by_the_caller_make_no_difference():
    model, batch = made(cnn), data()
    with torch.no_grad():
        inside = Hessian(model, Objective(), [batch]).sharpness()
    assert inside == Hessian(model, Objective(), [batch]).sharpness()


def test_one_image():
    operator = Hessian(made(cnn), Objective(), [data(1)])
    assert lanczos(operator).converged.all()


def test_batches_that_change_at_each_pass_are_read_once():
    model = made(cnn)
    images, targets = data()

    class Shuffling:
        passes = 0

        def __iter__(self):
            Shuffling.passes += 1
            yield images + Shuffling.passes, targets

    operator = Hessian(model, Objective(), Shuffling())
    assert Shuffling.passes == 1
    assert operator.probes["repeat"] == 0


# --- refusals


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


class Once(nn.Module):
    def forward(self, x):
        return Twice.apply(x)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Skewed(torch.autograd.Function):
    """x squared, with a wrong second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 2 * (x.detach() + x.roll(1, 1) - x.roll(1, 1).detach())


class Squares(nn.Module):
    def forward(self, x):
        return Skewed.apply(x)


def small(middle=None, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), middle or nn.Tanh(), nn.Linear(6, CLASSES)).to(dtype)


def with_nan(model):
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    return model


def compiled_inside(model):
    model[2] = torch.compile(model[2])
    return model


BATCH = (noise(4, 3, 2, 2), torch.arange(4) % CLASSES)


@pytest.mark.parametrize(
    ("model", "batches", "settings", "says"),
    [
        (small(Once()), [BATCH], {}, r"u.Hv - v.Hu. .* \(2 \(Once\)\)"),
        (small(Noisy()), [BATCH], {}, r"the same product twice.* \(2 \(Noisy\)\)"),
        (small(Squares()), [BATCH], {}, r"u.Hv - v.Hu. .* correct second derivative$"),
        (compiled_inside(small()), [BATCH], {}, "module 2 is compiled"),
        (small(dtype=torch.float16), [BATCH], {}, "float16 are too coarse"),
        (with_nan(small()), [BATCH], {}, "3.weight are not all finite"),
        (small().requires_grad_(False), [BATCH], {}, "is frozen"),
        (small(), [BATCH], {"params": of_module("head")}, "selects none of the 4 parameters"),
        (small(), [], {}, "no images"),
        (small(), [(BATCH[0][:0], BATCH[1][:0])], {}, "no images"),
        (small(), [BATCH[0]], {}, "pairs of tensors"),
        (small(), [(BATCH[0], BATCH[1][:3])], {}, "4 images and 3 targets"),
        (small(), [(BATCH[0], BATCH[1] + 9)], {}, "a label is"),
        (small(), [BATCH], {"micro_batch": 0}, "micro_batch is 0"),
    ],
)
def test_refuses_in_one_sentence(model, batches, settings, says):
    with (
        contextlib.nullcontext() if says.startswith("3.weight") else unchanged(model),
        pytest.raises(UserError, match=says) as no,
    ):
        Hessian(model, Objective(), batches, **settings)
    assert "\n" not in str(no.value)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (Objective(statistics="re-estimated"), "'running' or 'batch'"),
        (Objective(lambda out, target: out.sum()), "one number per image"),
        (Objective(lambda out, target: target.float()), "does not depend on these parameters"),
    ],
)
def test_refuses_objectives_that_have_no_hessian(objective, says):
    with pytest.raises(UserError, match=says):
        Hessian(small(), objective, [BATCH])


def test_refuses_weights_that_have_changed():
    model = small()
    operator = Hessian(model, Objective(), [BATCH])
    with torch.no_grad():
        model[1].bias += 1
    with pytest.raises(UserError, match="weights have changed"):
        operator.matvec(torch.ones(operator.size))
    with pytest.raises(UserError, match="does not fit"):
        operator.matvec(torch.ones(3))


def test_half_precision_needs_a_copy_and_a_compiled_model_is_used_uncompiled():
    exact = Hessian(small(), Objective(), [BATCH]).sharpness()
    half = Hessian(small(dtype=torch.float16), Objective(), [BATCH], dtype=torch.float32)
    assert half.sharpness() == pytest.approx(exact, rel=0.01)
    assert Hessian(torch.compile(small()), Objective(), [BATCH]).sharpness() == exact


def test_if_the_graph_does_not_fit_the_message_names_a_size_that_does(monkeypatch):
    objective = Objective()
    original = Objective.losses

    def losses(self, model, images, targets):
        if len(images) > 2:
            raise torch.OutOfMemoryError("no")
        return original(self, model, images, targets)

    monkeypatch.setattr(Objective, "losses", losses)
    with pytest.raises(UserError, match="graph of 4 images does not fit on cpu; micro_batch=2 fits"):
        Hessian(small(), objective, [BATCH])
    assert Hessian(small(), objective, [BATCH], micro_batch=2).images == 4


# --- several processes


def _rank(rank, file, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    images, labels = BATCH
    own = [(images[:3], labels[:3])] if rank == 0 else [(images[3:], labels[3:])]
    operator = Hessian(small(dtype=torch.float64), Objective(weight_decay=DECAY), own)
    pairs = lanczos(operator, 3, tol=1e-8)
    queue.put((rank, operator.images, (operator @ torch.ones(operator.size)).tolist(), pairs.values.tolist(), operator.loss()))
    torch.distributed.destroy_process_group()


def test_batches_of_several_ranks_are_one_data_set(tmp_path):
    context = torch.multiprocessing.get_context("forkserver")  # a fork cannot differentiate after autograd's threads ran
    queue = context.Queue()
    started = [context.Process(target=_rank, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for process in started:
        process.start()
    answers = [queue.get(timeout=60) for _ in started]
    for process in started:
        process.join()
    alone = Hessian(small(dtype=torch.float64), Objective(weight_decay=DECAY), [BATCH])
    for _, images, product, values, loss in answers:
        assert images == 4
        assert product == pytest.approx((alone @ torch.ones(alone.size)).tolist(), abs=1e-12)
        assert values == pytest.approx(lanczos(alone, 3, tol=1e-8).values, rel=1e-7)
        assert loss == pytest.approx(alone.loss())
