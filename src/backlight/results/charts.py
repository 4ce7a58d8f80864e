"""What each chart shows, in one place for print and for the page: the labels of its axes, its terms, which intervals it has.

A chart is named "ANALYSIS/PANEL", as its result names the panel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BOOTSTRAP = "95% bootstrap"
PROPORTION = "95% intervals of proportions"
PAIRED = "95% intervals of paired proportions"
BOOTSTRAP_T = "95% bootstrap-t"


@dataclass(frozen=True)
class ChartText:
    """The words of a chart."""

    x: str
    y: str  # with the unit
    terms: str  # what the axes mean, for readers who do not know the analysis
    interval: str = ""  # which interval the bands or bars are; empty if none is drawn
    marks: str = ""  # what colours and lines are, in print; the page has a legend


DEPTH = "Normalised depth"
OVER_DEPTH = "Normalised depth: 0 is the stem or first unit, 1 the last unit."
SHADED = "Shaded orange: an attention unit; dotted line: a new stage; grey band: the interval."
OF_UNITS = "Dotted line: a new stage."
FREQUENCY = "Frequency: 0 is the mean of the map, 1.0π its highest."
BY_DEPTH = f"A curve a unit, darker with depth. {FREQUENCY}"
ACROSS_HEADS = f"{OVER_DEPTH} A mark a head; line: their mean."
WITHOUT = "The unit leaves the stream unchanged, in the trained model; below 0 the model needs it."
EIGENVALUES = "Eigenvalues of largest magnitude of the Hessian of the training loss on each mini-batch"
ABOVE = "The trained weights are at 0; a coordinate of 1 moves each filter by its own length along a direction"
ATTACKED = "Epsilon: the largest change of a pixel. PGD and FGSM follow the gradient of the model; random noise does not."
ACCURACY = "Accuracy: the share of images that are classified correctly"
ECE = "ECE, expected calibration error: the mean distance between confidence and accuracy over bins"
CONFIDENCE = "Confidence: the probability of the predicted class. On the diagonal it equals the accuracy"
BY_SEVERITY = "Severity: the strength of a corruption, 0 the clean images."
NOISE = "Noise of one band of frequencies at a time is added to the pixels; 1.0π is the highest frequency."
NLL = "NLL: mean negative log-likelihood of the labels"

CHARTS: Mapping[str, ChartText] = {
    "fourier/spectrum": ChartText(
        "Frequency",
        "Δ log amplitude after each unit (nepers)",
        "Δ log amplitude: log amplitude of a feature map at a frequency, less that at frequency 0; lower means smoother maps.",
        BOOTSTRAP,
        BY_DEPTH,
    ),
    "fourier/depth": ChartText(
        DEPTH,
        "Δ log amplitude at the highest frequency (nepers)",
        f"Δ log amplitude at 1.0π after each unit; a step down: the unit lowers the share of high frequencies. {OVER_DEPTH}",
        BOOTSTRAP,
        SHADED,
    ),
    "fourier/transfer": ChartText(
        "Frequency",
        "Log amplitude after each unit minus before it (nepers)",
        "Transfer: what a unit does to the amplitude at a frequency; below 0 it attenuates.",
        BOOTSTRAP,
        "A curve a unit.",
    ),
    "fourier/steps": ChartText(
        "Unit",
        "Log amplitude after − before each unit (nepers)",
        "Both parts of a step of Δ log amplitude: of the mean of the map, and of its highest frequency.",
        BOOTSTRAP,
        f"○ mean, ● highest frequency. {OF_UNITS}",
    ),
    "fourier/mean_step": ChartText(
        "Unit",
        "Change of the log amplitude of the mean of the map at each unit (nepers)",
        "Log amplitude after the unit less before it, at frequency 0.",
        BOOTSTRAP,
    ),
    "fourier/high_step": ChartText(
        "Unit",
        "Change of the log amplitude of the highest frequency at each unit (nepers)",
        "Log amplitude after the unit less before it, at frequency 1.0π.",
        BOOTSTRAP,
    ),
    "variance/depth": ChartText(
        DEPTH,
        "Feature map variance (activation units squared)",
        f"Variance over positions of the stream after each unit; a step down: the unit averages. {OVER_DEPTH}",
        BOOTSTRAP,
        SHADED,
    ),
    "variance/normalised": ChartText(
        DEPTH,
        "Feature map variance over its mean square",
        f"Variance over positions of the stream after each unit, over its mean square. {OVER_DEPTH}",
        BOOTSTRAP,
        SHADED,
    ),
    "lesion/accuracy": ChartText(
        "Unit",
        "Change in accuracy without the unit (points)",
        f"{ACCURACY}. {WITHOUT}",
        PAIRED,
        OF_UNITS,
    ),
    "lesion/nll": ChartText(
        "Unit",
        "Change in NLL without the unit (nats)",
        f"{NLL}. The unit leaves the stream unchanged; above 0: needed.",
        BOOTSTRAP_T,
        OF_UNITS,
    ),
    "lesion/distance": ChartText(
        "Unit",
        "1 - cosine of the outputs with and without the unit",
        "0: the unit does not matter; 1: an unrelated output.",
        BOOTSTRAP_T,
        OF_UNITS,
    ),
    "lesion/position": ChartText(
        "Position in the stage",
        "Mean change in accuracy without the unit (points)",
        "Means over the first, the middle and the last units of all stages.",
        PAIRED,
    ),
    "noise/accuracy": ChartText(
        "Frequency of the noise",
        "Change in accuracy (points)",
        f"{NOISE} {ACCURACY}.",
        PAIRED,
    ),
    "noise/nll": ChartText("Frequency of the noise", "Change in NLL (nats)", f"{NOISE} {NLL}.", BOOTSTRAP_T),
    "noise/basis": ChartText(
        "Horizontal frequency",
        "Vertical frequency",
        "Error: the share of wrong answers if a wave of this frequency is added.",
    ),
    "similarity/matrix": ChartText(
        "Unit",
        "CKA, from 0 (dark) to 1 (bright)",
        "CKA, centred kernel alignment: 1 if streams after two units are equal up to rotation and scale, 0 if uncorrelated.",
        "",
        "Dotted line: a new stage.",
    ),
    "hessian/negative": ChartText(
        "Negative eigenvalues",
        "Density",
        f"{EIGENVALUES}. NEP: the share of them that is negative.",
        BOOTSTRAP,
    ),
    "hessian/positive": ChartText(
        "Positive eigenvalues",
        "Density",
        "The same. APE: the mean of the positive ones; large: the loss is sharp.",
        BOOTSTRAP,
    ),
    "hessian/ranks": ChartText(
        "Rank by magnitude",
        "Eigenvalue, mean of mini-batches",
        "The same eigenvalues, the largest first.",
        BOOTSTRAP,
    ),
    "hessian/batches": ChartText("Mini-batch", "Eigenvalue", "Each of them; open marks did not converge."),
    "landscape/contour": ChartText("", "", f"{ABOVE}; contours of the loss."),
    "landscape/surface": ChartText("", "", "The same in space."),
    "landscape/line": ChartText("Coordinate along a direction", "", f"{ABOVE}; cuts through them.", BOOTSTRAP),
    "buildup/accuracy": ChartText(
        "Attentions instead of convolutions",
        "Accuracy on held-out images (%)",
        f"{ACCURACY}, mean over seeds. A mark a network that the build-up rule tried.",
        "95% Student",
    ),
    "trajectory/plane": ChartText(
        "Axis 1",
        "Along the second principal axis of the path",
        "The path of training on the plane that holds most of its variance; a mark a snapshot, the cross is the trained model.",
    ),
    "trajectory/polar": ChartText(
        "r cos θ",
        "r sin θ (withdrawn by its author)",
        "Distance and angle to the trained model; they depend on scale.",
    ),
    "trajectory/loss": ChartText("Snapshot", "NLL at each snapshot (nats)", f"{NLL}, at each snapshot.", BOOTSTRAP),
    "attention/distance": ChartText(
        DEPTH,
        "Attention distance (pixels)",
        f"Distance of a query to its keys, weighted by attention. {ACROSS_HEADS}",
        BOOTSTRAP,
        "Short line: uniform attention.",
    ),
    "attention/entropy": ChartText(
        DEPTH,
        "Entropy of attention (nats)",
        "Low: few keys have most of the weight.",
        BOOTSTRAP,
        "Short line: uniform attention.",
    ),
    "attention/nmi": ChartText(
        DEPTH,
        "Normalised mutual information of queries and keys",
        "0: all queries have the same weights (attention collapsed).",
        BOOTSTRAP,
    ),
    "attention/high_frequency": ChartText(
        DEPTH,
        "Share of the attention matrix above frequency zero",
        "0: attention is an average over the image.",
        BOOTSTRAP,
    ),
    "erf/radius": ChartText(
        DEPTH,
        "Side of the square that holds this share of the receptive field (pixels)",
        "Effective receptive field: the gradient of the middle of a feature map by the pixels; a curve a share of it. "
        f"{OVER_DEPTH}",
        BOOTSTRAP,
        "Shaded: an attention unit.",
    ),
    "erf/maps": ChartText("", "", "S: the mean magnitude of that gradient at each pixel, over its maximum."),
    "calibration/reliability": ChartText(
        "Confidence",
        "Accuracy in the bin",
        f"{CONFIDENCE}; below it the model is over-confident. {ECE}.",
        PROPORTION,
    ),
    "calibration/scaled": ChartText(
        "Confidence",
        "Accuracy in the bin",
        f"{CONFIDENCE}; after temperature scaling.",
        PROPORTION,
    ),
    "corruption/accuracy": ChartText(
        "Severity",
        "Accuracy (%)",
        f"{BY_SEVERITY} {ACCURACY}.",
        PROPORTION,
        "Black: the mean over corruptions; thin: each of them.",
    ),
    "corruption/ece": ChartText("Severity", "ECE (%)", f"{ECE}.", BOOTSTRAP),
    "corruption/nll": ChartText("Severity", "NLL (nats)", f"{BY_SEVERITY} {NLL}.", BOOTSTRAP_T),
    "corruption/reliability": ChartText("Confidence", "Accuracy", f"{CONFIDENCE}.", "", "A line a severity."),
    "adversarial/accuracy": ChartText("Epsilon (1/255)", "Accuracy (%)", f"{ATTACKED}", PROPORTION),
    "adversarial/success": ChartText(
        "Epsilon (1/255)",
        "Success of the attack (%)",
        "Success: the share of right answers that become wrong.",
        PROPORTION,
    ),
    "shape_bias/bias": ChartText(
        "Shape bias (0: by texture, 1: by shape)",
        "Outline",
        "Of images whose outline is of one class and whose texture of another: answers by shape over answers by either.",
        PROPORTION,
        "Dashed: all outlines.",
    ),
    "models/error_and_nll": ChartText(
        "Training NLL (nats)",
        "Test error (%)",
        f"{NLL}, of augmented training images at the trained weights. Error: the share of wrong answers. A point a model.",
        f"{PROPORTION} (error) and {BOOTSTRAP} (NLL)",
    ),
    "models/robustness": ChartText(
        "Accuracy (%)",
        "Accuracy under corruptions (%)",
        f"{ACCURACY}; under corruptions: the mean over kinds and severities.",
        PROPORTION,
    ),
    "models/build_up": ChartText(
        "Attentions, and the stages",
        "Accuracy (%)",
        f"{ACCURACY}. The number of attention units, and below it a letter a unit (a attention, c convolution, m MLP), a group "
        "a stage.",
        PROPORTION,
    ),
}

PLACES = {1: ("",), 2: ("Left: ", "Right: "), 3: ("Left: ", "Middle: ", "Right: ")}
ORDINALS = ("First: ", "Second: ", "Third: ", "Fourth: ")


def caption(texts: Sequence[ChartText], over: str, *, marks: bool = True) -> str:
    """The caption of the charts of one figure, a line each: terms, marks, and which intervals, over what.

    ``marks``: with what colours and lines mean in print.

    >>> caption([CHARTS["attention/nmi"]], "200 test images")
    '0: all queries have the same weights (attention collapsed). Intervals: 95% bootstrap, over 200 test images.'
    """
    said = [" ".join(filter(None, (text.terms, text.marks if marks else ""))) for text in texts]
    kinds = " or ".join(dict.fromkeys(text.interval for text in texts if text.interval))
    last = f"Intervals: {kinds}, over {over}." if kinds else f"Over {over}."
    placed = [place + each for place, each in zip(PLACES.get(len(said), ORDINALS), said, strict=False)]
    return " ".join([*placed, last]) if len(said) == 1 else "\n".join([*placed, last])
