"""What a batch of images is, how it gets to the model, and which labels fit the model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from backlight.devices import device_of, dtype_of
from backlight.errors import NotApplicable, UserError

#: Under these names a batch that is a dict holds its images, and its labels.
IMAGES = ("pixel_values", "images", "image", "img")
LABELS = ("labels", "label", "targets", "target")

#: Modules of these names are the classifiers of timm's, torchvision's and other models.
HEADS = ("head", "fc", "classifier", "heads")
WITHOUT_CLASSIFIER = "fourier, variance, erf, similarity, attention and lesion --by similarity need none"


def images_and_labels(batch: Any) -> tuple[Any, Any]:
    """The parts of a batch: a tensor of images, a tuple (images, labels), or a dict with names of `IMAGES` and `LABELS`.

    Labels are None where the batch has none.  Errors: UserError for a dict without images.
    """
    if isinstance(batch, Mapping):
        key = next((name for name in IMAGES if name in batch), None)
        if key is None:
            raise UserError(f"a batch is a dict of {', '.join(map(str, batch))}; call its images {' or '.join(IMAGES)}")
        return batch[key], next((batch[name] for name in LABELS if name in batch), None)
    images, labels, *_ = (*batch, None, None) if isinstance(batch, (tuple, list)) else (batch, None)
    return images, labels


def labelled(batch: Any) -> tuple[Tensor, Tensor]:
    """The images and the labels of a batch.  Errors: UserError if one of them is missing or no tensor."""
    images, labels = images_and_labels(batch)
    if isinstance(images, Tensor) and labels is None:
        raise UserError("the data have no labels, and the loss needs them: batches must be pairs of tensors (images, targets)")
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        raise UserError(f"batches must be pairs of tensors (images, targets), and this is a {type(batch).__name__}")
    return images, labels


def image_batches(data: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches as (images, labels); labels are None where the data have none.  Empty batches are left out.

    Shapes: images (B, C, H, W).  Errors: UserError if an item is not a batch of images, or its pixels are not scaled.
    """
    for batch in data:
        images, labels = images_and_labels(batch)
        if not isinstance(images, Tensor) or images.ndim != 4:
            what = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(batch).__name__}"
            raise UserError(f"data must yield batches of images (B, C, H, W), alone or with labels, and this yields {what}")
        if not images.is_floating_point():
            kind = str(images.dtype).removeprefix("torch.")
            raise UserError(f"the images are pixels of type {kind}; scale and normalise them as the model was trained")
        if len(images):
            yield images, labels if isinstance(labels, Tensor) else None


def to_model(images: Tensor, model: nn.Module) -> Tensor:
    """The images on the model's device, in the type of its weights."""
    return images.to(device_of(model), dtype_of(model), non_blocking=True)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value that modules pass on: nested tuples, lists, dicts and model outputs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "values") and hasattr(value, "keys"):
        for item in value.values():
            yield from tensors(item)


def first_tensor(returned: Any) -> Tensor:
    """The first tensor in what a model returns.  Errors: UserError if there is none."""
    tensor = next(tensors(returned), None)
    if tensor is None:
        raise UserError(f"the model returns {type(returned).__name__} without a tensor; return class scores or features")
    return tensor


def not_finite(outputs: Tensor) -> int:
    """The number of images with an output that is NaN or infinite.  Shapes: (B, ...)."""
    return int((~outputs.isfinite().flatten(1).all(1)).sum())


def refuse_not_finite(count: int, images: int) -> None:
    """Errors: UserError if outputs of some images are not finite."""
    if count:
        raise UserError(
            f"not applicable: outputs are not finite for {count} of {images} images; "
            "try --dtype float32 or float64, or look for a division by zero in the model"
        )


def checked_labels(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits and labels that fit each other.  Shapes: (B, K), (B,) -> the same, labels int64.

    Errors: UserError that says what does not fit.
    """
    if labels is None:
        raise UserError("this analysis compares predictions with labels, and the data give no tensor of labels")
    if (logits >= 0).all() and (logits.float().sum(1) - 1).abs().max() < 1e-2:
        raise UserError("the model returns probabilities, and this analysis needs logits; leave out its softmax")
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise UserError(
            f"this analysis needs a class number for each of {len(logits)} images, and the data have labels of shape "
            f"{tuple(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')}"
        )
    if (wrong := labels[(labels < 0) | (labels >= logits.shape[1])]).numel():
        raise UserError(
            f"the data have a label {int(wrong[0])} and the model's classes are 0 to {logits.shape[1] - 1}; "
            "give a model of this data set's classes"
        )
    return logits, labels.long()


def refuse_no_classifier(model: nn.Module, logits: Tensor, data: Any = None) -> None:
    """Check that the outputs can be the scores of the data's classes.

    Errors: NotApplicable if they are no class scores; UserError if the data say that they have another number of classes.
    """
    if reason := why_no_classifier(model, logits):
        raise NotApplicable(f"no classifier: {reason}; {WITHOUT_CLASSIFIER}")
    classes = getattr(data, "classes", None)
    if classes and logits.shape[1] != len(classes):
        raise UserError(
            f"the model has {logits.shape[1]} outputs and the data have {len(classes)} classes, so its accuracy means nothing; "
            "give a model that was trained on these classes, or data with the model's own classes"
        )


def why_no_classifier(model: nn.Module, logits: Tensor) -> str:
    """Why the outputs of a model are no class scores; empty if they can be."""
    if logits.ndim != 2:
        return f"the model returns {tuple(logits.shape)} for {len(logits)} images, and class scores are (images, classes)"
    if getattr(model, "num_classes", None) == 0:
        return f"the model was built with num_classes=0, and its {logits.shape[1]} outputs are features"
    head = next((name for name in HEADS if isinstance(getattr(model, name, None), nn.Identity)), None)
    return f"the model's {head} is an Identity, and its {logits.shape[1]} outputs are features" if head else ""
